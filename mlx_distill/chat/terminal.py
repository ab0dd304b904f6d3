"""Where the chat meets the user: a terminal with line editing and history, or a pipe with one prompt."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_distill.errors import InputError

if TYPE_CHECKING:
    from prompt_toolkit.history import History


def is_interactive() -> bool:
    """Whether a person types and reads here."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def shows_colors() -> bool:
    """Whether this terminal shows colours and its user wants them. https://no-color.org"""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def read_pipe() -> str:
    """All of standard input as one prompt; InputError where it is empty or not text."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError("Standard input is not UTF-8 text.", "Pipe a text file into the command.") from error
    if not text:
        raise InputError("Standard input holds no prompt.", "For example: echo 'What is a queue?' | mlx-distill chat")
    return text


def line_reader() -> Callable[[], str]:
    """A function that asks for one line (Alt-Enter begins a new one), with the history of earlier chats."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(history=_history(), key_bindings=keys)
    return lambda: session.prompt("> ", prompt_continuation="  ")


def history_file() -> Path:
    """Where what the user typed is kept from one chat to the next."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "mlx-distill" / "chat_history"


def _history() -> History:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    file = history_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))  # what one asks a model is nobody else's business
    except OSError as error:
        say(f"(no history of earlier chats: {file} cannot be opened: {error.strerror})")
        return InMemoryHistory()
    return FileHistory(str(file))


@contextmanager
def held_keys(descriptor: int = 0) -> Iterator[None]:
    """Within the block, what is typed is not shown amid the answer; it is there at the next prompt.

    Ctrl-C stays a signal, and throws away what was typed before it, as everywhere on a terminal.
    """
    before = termios.tcgetattr(descriptor)
    held = termios.tcgetattr(descriptor)
    held[3] &= ~(termios.ECHO | termios.ICANON)  # without ICANON keys reach the prompt's own line editing as they are
    termios.tcsetattr(descriptor, termios.TCSADRAIN, held)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def write(text: str) -> None:
    """A piece of an answer, shown at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def say(text: str) -> None:
    """A line that is not part of an answer."""
    click.secho(text, dim=True, err=True)
