"""The loop on a terminal: reads lines, streams answers, knows a few commands."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from mlx_distill.chat.config import ChatResult
from mlx_distill.chat.highlight import CodePainter
from mlx_distill.chat.transcript import save
from mlx_distill.errors import DistillError
from mlx_distill.models.config import check_temperature
from mlx_distill.models.conversation import Conversation, Turn
from mlx_distill.sanitize import encodable, printable

HELP = """\
/help          this list
/reset         forget the conversation
/system TEXT   start over under another system message; without TEXT, show it
/retry         take the last answer back and ask again
/temp NUMBER   the temperature from now on, 0 to 10; without NUMBER, show it
/ab            the base answers each turn as well; again to end that
/save FILE     write the conversation as Markdown, or as JSON (FILE.json)
/exit          leave (Ctrl-D does the same)
Ctrl-C stops an answer. Alt-Enter, or Esc and then Enter, begins a new line;
lines that are pasted stay together."""

NO_ADAPTER = "There is one model here and no adapter, so there is nothing to compare with."

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


class Session:
    """One chat. `read` returns a line and raises EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C.

    `write` takes pieces of the answer, in colours where `colors` is True, `say` whole lines of everything else.
    `held_keys` keeps what is typed while an answer is written from being shown amid it. With `ab`, base and distilled
    answer each turn, one after the other: both from the conversation so far, which goes on with the distilled
    student's answer.
    """

    def __init__(
        self,
        conversation: Conversation,
        read: Callable[[], str],
        write: Callable[[str], None],
        say: Callable[[str], None],
        *,
        ab: bool = False,
        colors: bool = False,
        held_keys: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.conversation = conversation
        self._ab, self._colors = ab, colors
        self._read, self._write, self._say = read, write, say
        self._held_keys = held_keys
        self._n_answers = self._n_tokens = 0

    def run(self) -> ChatResult:
        """Talk until the user leaves."""
        while True:
            try:
                line = self._read()
            except EOFError:
                break
            except KeyboardInterrupt:
                self._say("(Ctrl-D or /exit leaves)")
                continue
            if not line.strip():
                continue
            command = _COMMAND.fullmatch(line.strip())
            if command is None:
                self.answer(line)
            elif command[1] in ("exit", "quit"):
                break
            else:
                self._obey(command[1], (command[2] or "").strip())
        return ChatResult(self._n_answers, self._n_tokens)

    def answer(self, text: str) -> None:
        """Stream the answer, or both answers; or say why there is none. Ctrl-C ends the turn."""
        text = encodable(text)
        if not self._ab:
            self._stream(self.conversation.ask, text)
            return
        self._say("base:")
        if self._stream(self.conversation.ask_base, text):
            self._say("distilled:")
            self._stream(self.conversation.ask, text)

    def _stream(self, ask: Callable[[str], Generator[str, None, None]], text: str) -> bool:
        """Write one answer and what is worth knowing about it; False where it was stopped, or there was none."""
        try:
            with self._held_keys(), _ctrl_c() as stop:
                painter = CodePainter() if self._colors else None
                ends_line = write_pieces(ask(text), self._write, stop, painter)
        except DistillError as error:
            self._say(str(error))
            return False
        except KeyboardInterrupt:  # the second Ctrl-C: the model was busy with a long prompt
            ends_line = False
        turn = self.conversation.turn
        if not ends_line:
            self._write("\n")
        if turn:
            self._n_answers += 1
            self._n_tokens += turn.n_tokens
            for line in closing_lines(turn, self.conversation.max_tokens):
                self._say(line)
        return turn is not None and turn.finish_reason != "stopped"

    def _obey(self, name: str, text: str) -> None:
        conversation = self.conversation
        if name == "help":
            self._say(HELP)
        elif name == "reset":
            conversation.start_over()
            self._say("(forgotten)")
        elif name == "system":
            if text:
                conversation.start_over(text)
                self._say("(new system message; the conversation starts over)")
            else:
                self._say(printable(conversation.system) or "(no system message)")
        elif name == "retry":
            question = conversation.take_back()
            if question is None:
                self._say("There is no answer to take back.")
            else:
                self.answer(question)
        elif name == "temp":
            self._set_temperature(text)
        elif name == "ab":
            self._switch_ab()
        elif name == "save":
            self._save(text)
        else:
            self._say(f"There is no command /{name}. /help lists them.")

    def _set_temperature(self, text: str) -> None:
        try:
            if text:
                wanted = float(text)
                check_temperature(wanted)
                self.conversation.temperature = wanted
        except ValueError:
            self._say(f"{printable(text)} is no temperature: give a number between 0 and 10.")
            return
        temperature = self.conversation.temperature
        always = ": always the likeliest token" if temperature == 0 else ""
        self._say(f"(temperature {temperature:g}{always})")

    def _switch_ab(self) -> None:
        if self.conversation.adapter is None:
            self._say(NO_ADAPTER)
            return
        self._ab = not self._ab
        if self._ab:
            self._say(
                "(each turn is answered by base and distilled; the conversation goes on with the distilled answer)"
            )
        else:
            self._say("(only the distilled student answers)")

    def _save(self, text: str) -> None:
        if not text:
            self._say("/save needs the name of a file, for example: /save chat.md")
            return
        try:
            file = save(self.conversation.messages, Path(text))
        except DistillError as error:
            self._say(str(error))
            return
        self._say(f"(saved in {file})")


def write_pieces(
    pieces: Generator[str, None, None],
    write: Callable[[str], None],
    stop: threading.Event,
    painter: CodePainter | None = None,
) -> bool:
    """Write what a model says, made harmless, until it ends or `stop` is set; whether the last piece ended its line.

    A `painter` puts colours on code, and may hold back a line until it is whole.
    """
    last = ""
    try:
        for piece in pieces:
            text = printable(piece)
            write(painter.feed(text) if painter else text)
            last = text or last
            if stop.is_set():
                break
    finally:
        pieces.close()
        if painter:
            write(painter.end())
    return last.endswith("\n")


def closing_lines(turn: Turn, max_tokens: int) -> list[str]:
    """What is worth knowing after an answer."""
    lines = []
    if turn.n_dropped:
        turns = "the oldest turn was" if turn.n_dropped == 1 else f"the {turn.n_dropped} oldest turns were"
        lines.append(f"({turns} dropped: the context is full)")
    if turn.finish_reason == "length":
        raise_limit = "; --max-tokens raises the limit" if turn.n_tokens >= max_tokens else ": the context is full"
        lines.append(f"(cut off after {turn.n_tokens} tokens{raise_limit})")
    rate = f", {turn.tokens_per_second:.0f} tokens/s" if turn.tokens_per_second else ""
    stopped = "stopped after " if turn.finish_reason == "stopped" else ""
    lines.append(f"({stopped}{turn.n_tokens} tokens{rate})")
    return lines


@contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """Within the block the first Ctrl-C sets the event, a second one raises KeyboardInterrupt.

    An interrupt in the middle of a model step would leave its cache in pieces; between two tokens it does not.
    """
    pressed = threading.Event()

    def note(_signal: int, _frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
