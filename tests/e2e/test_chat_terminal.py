"""The chat on a pseudo-terminal: commands, Ctrl-C during an answer, Ctrl-D, history."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mlx_distill.chat.terminal import hide_typing
from mlx_distill.errors import DistillError
from tests.support.tiny import make_tiny_qwen2

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b[=>]|\x1b\][^\x07]*\x07")

_PROMPT = r"(?:^|\n)> ?"
_START_OF_ANSWER = r"Write a function\.\s*\n\S*[^>]{20}"
_COMMAND = """\
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from mlx_distill.cli import main
main()
"""
"""Runs the command with the pseudo-terminal as the controlling one, so that Ctrl-C becomes a signal."""


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._screen, keyboard = pty.openpty()
        env = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "100", "LINES": "40"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *arguments],
            stdin=keyboard,
            stdout=keyboard,
            stderr=keyboard,
            cwd=folder,
            env=env,
            start_new_session=True,
        )
        os.close(keyboard)
        self._seen = b""

    def type(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def wait_for(self, pattern: str, seconds: float = 60) -> str:
        """Read until `pattern` appears, and return the new text up to its end."""
        deadline = time.monotonic() + seconds
        while True:
            text = _ANSI.sub("", self._seen.decode(errors="replace")).replace("\r", "")
            found = re.search(pattern, text)
            if found:
                self._seen = text[found.end() :].encode()
                return text[: found.end()]
            left = deadline - time.monotonic()
            if left < 0 or not self._read(left):
                raise AssertionError(f"{pattern!r} did not appear in:\n{text!r}")

    def leave(self, keys: str, seconds: float = 20) -> None:
        """Type the keys that end the chat, and check the exit code."""
        self.type(keys)
        while self._read(seconds):
            pass
        assert self.process.wait(seconds) == 0

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._screen)

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._screen], [], [], seconds)
        if not ready:
            return False
        try:
            data = os.read(self._screen, 65536)
        except OSError:  # Linux: the other side is closed
            return False
        self._seen += data
        return bool(data)


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Return a function that starts `chat` with a tiny model and the given options, and waits for its prompt."""
    model = make_tiny_qwen2(tmp_path / "tiny")
    terminals: list[Terminal] = []

    def start(*options: str) -> Terminal:
        terminals.append(Terminal(["chat", "--model", str(model), *options], tmp_path))
        terminals[-1].wait_for(_PROMPT)
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def test_ctrl_c_stops_the_answer_and_not_the_chat(chat: Callable[..., Terminal]) -> None:
    terminal = chat("--max-tokens", "1900")
    terminal.type("Write a function.\r")
    terminal.wait_for(_START_OF_ANSWER)
    terminal.type("\x03")
    stopped = terminal.wait_for(r"\(stopped after (\d+) tokens")
    assert int(re.findall(r"stopped after (\d+)", stopped)[0]) < 1900
    terminal.wait_for(_PROMPT)
    terminal.type("\x03")
    terminal.wait_for(r"\(Ctrl-D or /exit leaves\)")
    terminal.wait_for(_PROMPT)
    terminal.leave("\x04")


def test_keys_during_an_answer_appear_at_the_next_prompt(chat: Callable[..., Terminal]) -> None:
    terminal = chat("--max-tokens", "400")
    terminal.type("Write a function.\r")
    terminal.wait_for(_START_OF_ANSWER)
    terminal.type("XYZZY")
    assert "XYZZY" not in terminal.wait_for(r"tokens/s\)")
    terminal.wait_for(_PROMPT + r"[\b ]*XYZZY")
    terminal.leave("\x15/exit\r")


def test_the_terminal_echoes_after_every_answer() -> None:
    screen, keyboard = pty.openpty()
    before = termios.tcgetattr(keyboard)
    for error in (None, DistillError("refused"), KeyboardInterrupt()):
        with suppress(DistillError, KeyboardInterrupt), hide_typing(keyboard):
            assert not termios.tcgetattr(keyboard)[3] & termios.ECHO
            assert termios.tcgetattr(keyboard)[3] & termios.ISIG, "Ctrl-C stays a signal"
            if error:
                raise error
        assert termios.tcgetattr(keyboard) == before
    os.close(keyboard)
    os.close(screen)


def test_the_next_chat_has_the_history(chat: Callable[..., Terminal]) -> None:
    first = chat("--max-tokens", "2")
    first.type("Remember this line\r")
    first.wait_for(r"tokens\)|tokens/s\)")
    first.wait_for(_PROMPT)
    first.leave("\x04")
    second = chat("--max-tokens", "2")
    second.type("\x1b[A")
    second.wait_for("Remember this line")
    second.leave("\x15/exit\r")
