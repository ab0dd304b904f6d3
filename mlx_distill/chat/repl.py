"""The loop of a chat: read a line, then stream the answer or run the command that starts with a slash."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType

from mlx_distill.chat.conversation import Conversation, Turn
from mlx_distill.errors import DistillError
from mlx_distill.models.config import MAX_TEMPERATURE
from mlx_distill.sanitize import encodable, printable

HELP = """\
/help          show this list
/reset         forget the conversation
/system TEXT   start over with another system message; without TEXT, show it
/retry         remove the last answer and ask again
/undo          remove the last question and its answer
/temp NUMBER   set the temperature, 0 to 10; without NUMBER, show it
/ab            let base and distilled both answer each turn; again: only distilled
/save FILE     write the conversation as Markdown, or as JSON (FILE.json)
/exit          leave (or Ctrl-D)
Ctrl-C stops an answer. Alt-Enter, or Esc and then Enter, starts a new line.
Pasted lines stay together."""

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


class Repl:
    """One chat session.

    `read` returns a line; it raises EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C. `write` shows pieces of
    answers, `say` shows other lines. `hide_typing` hides typed text while an answer streams. With `ab`, base and
    distilled answer each turn, and the history contains only the distilled answers.
    """

    def __init__(
        self,
        conversation: Conversation,
        read: Callable[[], str],
        write: Callable[[str], None],
        say: Callable[[str], None],
        *,
        ab: bool = False,
        hide_typing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._conversation = conversation
        self._read, self._write, self._say = read, write, say
        self._ab = ab
        self._hide_typing = hide_typing
        self._commands: dict[str, Callable[[str], str]] = {  # each takes the text after its name and returns the reply
            "help": lambda _: HELP,
            "reset": self._reset,
            "system": self._system,
            "retry": self._retry,
            "undo": self._undo,
            "temp": self._temperature,
            "ab": self._switch_ab,
            "save": self._save,
        }

    def run(self) -> None:
        """Chat until the user leaves."""
        while True:
            try:
                line = self._read()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._say("(Ctrl-D or /exit leaves)")
                continue
            command = _COMMAND.fullmatch(line.strip())
            if command is None:
                if line.strip():
                    self.answer(line)
            elif command[1] in ("exit", "quit"):
                return
            else:
                self._run_command(command[1], (command[2] or "").strip())

    def answer(self, text: str) -> None:
        """Stream the answer, or say why there is none. Ctrl-C ends the turn, also before the second answer of `ab`."""
        text = encodable(text)
        if self._ab:
            self._say("base:")
            if not self._stream(text, base=True):
                return
            self._say("distilled:")
        self._stream(text)

    def _stream(self, text: str, *, base: bool = False) -> bool:
        """Stream one answer. Returns False if the user stopped it or the text was refused."""
        conversation = self._conversation
        try:
            # The second Ctrl-C interrupts a model that still reads a long prompt.
            with suppress(KeyboardInterrupt), self._hide_typing(), _ctrl_c() as stop:
                write_answer(conversation.ask(text, base=base), self._write, stop)
        except DistillError as error:
            self._say(printable(str(error)))
        turn = conversation.turn
        for line in turn_notes(turn, conversation.max_tokens) if turn else ():
            self._say(line)
        return turn is not None and turn.finish_reason != "stopped"

    def _run_command(self, name: str, text: str) -> None:
        if name not in self._commands:
            self._say(f"There is no command /{name}. /help lists the commands.")
            return
        try:
            reply = self._commands[name](text)
        except DistillError as error:
            reply = str(error)
        if reply:
            self._say(printable(reply))

    def _reset(self, _text: str) -> str:
        self._conversation.start_over()
        return "(conversation forgotten)"

    def _system(self, text: str) -> str:
        if not text:
            return self._conversation.system or "(no system message)"
        self._conversation.start_over(encodable(text))
        return "(new system message; the conversation starts over)"

    def _retry(self, _text: str) -> str:
        question = self._conversation.remove_last_turn()
        if question is None:
            return "There is no answer to replace."
        self.answer(question)
        return ""

    def _undo(self, _text: str) -> str:
        return "There is no turn to remove." if self._conversation.remove_last_turn() is None else "(last turn removed)"

    def _temperature(self, text: str) -> str:
        try:
            wanted = float(text) if text else self._conversation.temperature
        except ValueError:
            wanted = -1.0
        if not 0 <= wanted <= MAX_TEMPERATURE:
            return f"The temperature must be a number between 0 and {MAX_TEMPERATURE}, not {text}."
        self._conversation.temperature = wanted
        return f"(temperature {wanted:g}{'' if wanted else ': always the most probable token'})"

    def _switch_ab(self, _text: str) -> str:
        if self._conversation.model.adapter is None:
            return "This model has no adapter, so there is nothing to compare. Start the chat with --adapter."
        self._ab = not self._ab
        if not self._ab:
            return "(only the distilled student answers)"
        return "(base and distilled answer each turn; the history contains only the distilled answers)"

    def _save(self, text: str) -> str:
        if not text:
            return "/save needs a file name. For example: /save chat.md"
        return f"(saved in {self._conversation.save(Path(text))})"


def write_answer(
    pieces: Generator[str, None, None], write: Callable[[str], None], stop: threading.Event | None = None
) -> None:
    """Write printable text until `pieces` ends or `stop` is set, and end the last line."""
    last = ""
    try:
        for piece in pieces:
            text = printable(piece)
            write(text)
            last = text or last
            if stop and stop.is_set():
                break
    finally:
        pieces.close()
        if not last.endswith("\n"):
            write("\n")


def turn_notes(turn: Turn, max_tokens: int) -> list[str]:
    """Return the lines to show below an answer."""
    lines = []
    if turn.n_dropped:
        turns = "the oldest turn was" if turn.n_dropped == 1 else f"the {turn.n_dropped} oldest turns were"
        lines.append(f"({turns} dropped: the context is full)")
    if turn.finish_reason == "length":
        lines.append(cut_off_note(turn, max_tokens))
    rate = f", {turn.tokens_per_second:.0f} tokens/s" if turn.tokens_per_second else ""
    stopped = "stopped after " if turn.finish_reason == "stopped" else ""
    return [*lines, f"({stopped}{turn.n_tokens} tokens{rate})"]


def cut_off_note(turn: Turn, max_tokens: int) -> str:
    """Return the line that names the limit that cut an answer."""
    advice = "; --max-tokens raises the limit" if turn.n_tokens >= max_tokens else ": the context is full"
    return f"(cut off after {turn.n_tokens} tokens{advice})"


@contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """Set the event on the first Ctrl-C in the block; raise KeyboardInterrupt on the second.

    The event stops an answer between two tokens. An interrupt inside a model step would break the cache.
    """
    pressed = threading.Event()

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
