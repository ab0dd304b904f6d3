"""The input and output of a chat: a terminal with line editing and history, or a pipe with one prompt."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from mlx_distill.errors import InputError


def read_pipe() -> str:
    """Return standard input as one prompt. InputError if it is empty or not UTF-8."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError("Standard input is not UTF-8 text.", "Pipe a text file into the command.") from error
    if not text:
        raise InputError(
            "Standard input is empty.", "Give a prompt. For example: echo 'What is a queue?' | mlx-distill chat"
        )
    return text


def line_reader() -> Callable[[], str]:
    """Return a function that reads one message. It knows the messages of earlier chats; Alt-Enter starts a new line."""
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(history=_history(), key_bindings=keys)
    return lambda: session.prompt("> ", prompt_continuation="  ")


def _history() -> History:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    file = Path(state).expanduser() / "mlx-distill" / "chat_history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))  # only the owner may read it
    except OSError as error:
        say(f"(no history of earlier chats: cannot open {file}: {error.strerror})")
        return InMemoryHistory()
    return FileHistory(str(file))


@contextmanager
def hide_typing(descriptor: int = 0) -> Iterator[None]:
    """Hide what the user types in the `with` block; it appears at the next prompt. Ctrl-C stays a signal."""
    before = termios.tcgetattr(descriptor)
    held = termios.tcgetattr(descriptor)
    held[3] &= ~(termios.ECHO | termios.ICANON)  # without ICANON, the keys reach the line editor unchanged
    termios.tcsetattr(descriptor, termios.TCSADRAIN, held)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def write(text: str) -> None:
    """Show a piece of an answer at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def say(text: str) -> None:
    """Show a line that is not part of an answer, on standard error."""
    click.secho(text, dim=True, err=True)
