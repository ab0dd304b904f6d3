"""A conversation with a student: its history, and the next answer that fits the context."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from pathlib import Path

import msgspec

from mlx_distill.errors import InputError
from mlx_distill.models.chat_model import ChatModel
from mlx_distill.models.config import ChatConfig
from mlx_distill.models.generate import Sampling
from mlx_distill.records import Message, Messages
from mlx_distill.sanitize import printable
from mlx_distill.storage.atomic import new_file

_TITLES = {"system": "System", "user": "You", "assistant": "Student"}


class Turn(msgspec.Struct, frozen=True):
    """Figures of one answer."""

    finish_reason: str
    """`stop`: the model ended its turn. `length`: the limit cut the answer. `stopped`: the user stopped it."""
    n_tokens: int
    seconds: float
    """Time from the first token to the last."""
    n_dropped: int
    """Old turns that were dropped from the history because the context was full."""

    @property
    def tokens_per_second(self) -> float:
        return (self.n_tokens - 1) / self.seconds if self.n_tokens > 1 and self.seconds > 0 else 0.0


class Conversation:
    """Asks a student turn by turn. If the student has an adapter, the base can answer the same question too."""

    def __init__(self, model: ChatModel, config: ChatConfig) -> None:
        self.model = model
        self.system = self._checked_system(config.system)
        self.max_tokens = config.max_tokens
        self.temperature = config.temperature
        self.turn: Turn | None = None
        """Figures of the last answer. None before the first answer and after a refused message."""
        self._seed = config.seed
        self._history: list[Message] = []

    @property
    def messages(self) -> Messages:
        """The system message and the history."""
        head = [Message("system", self.system)] if self.system else []
        return (*head, *self._history)

    def start_over(self, system: str | None = None) -> None:
        """Forget the history. `system`, if given, is the new system message. InputError for a control token in it."""
        if system is not None:
            self.system = self._checked_system(system)
        self._history.clear()

    def remove_last_turn(self) -> str | None:
        """Remove the last turn and return its question, or None if there is no turn."""
        if not self._history:
            return None
        question = self._history[-2].content
        del self._history[-2:]
        return question

    def ask(self, text: str, *, base: bool = False) -> Generator[str, None, None]:
        """Stream the answer to `text`, in whole characters. Afterwards `turn` holds its figures.

        Closing the generator stops the answer; the text so far stays in the history. With `base`, the base answers
        with the same seed, and the history does not change. Raises InputError, and changes nothing, if `text` does not
        fit the context or contains a control token.
        """
        self.turn = None
        self.model.check((Message("user", text),))
        n_dropped, prompt = self._fit(text)
        return self._answer(text, prompt, n_dropped, base)

    def save(self, file: Path) -> Path:
        """Write the conversation to a new file, as JSON (`.json`) or Markdown. Returns its path, with `~` expanded.

        Raises InputError if there is no answer or the file exists, MachineError if it cannot be written.
        """
        if not self._history:
            raise InputError("There is no answer to save yet.")
        try:
            file = file.expanduser()
        except RuntimeError as error:
            raise InputError(f"{file}: this user has no home folder.") from error
        if file.exists():
            raise InputError(f"{file} already exists; choose another name.")
        if file.suffix == ".json":
            data = {"messages": [message.to_json() for message in self.messages]}
            text = json.dumps(data, ensure_ascii=False, indent=2) + "\n"
        else:
            sections = [(_TITLES[message.role], printable(message.content).strip()) for message in self.messages]
            text = "\n".join(f"## {title}\n\n{content}\n" for title, content in sections)
        with new_file(file) as scratch:
            scratch.write_text(text, encoding="utf-8")
        return file

    def _checked_system(self, system: str) -> str:
        self.model.check((Message("system", system),))
        return system

    def _answer(self, text: str, prompt: list[int], n_dropped: int, base: bool) -> Generator[str, None, None]:
        answer, reason, n_tokens, seconds, first = "", "stopped", 0, 0.0, 0.0
        sampling = Sampling(self.temperature, seed=self._seed)
        pieces = self.model.stream(prompt, base=base, max_tokens=self.max_tokens, sampling=sampling)
        try:
            for piece in pieces:
                n_tokens += 1
                first = first or time.perf_counter()
                seconds = time.perf_counter() - first
                reason = piece.finish_reason or reason
                answer += piece.text
                yield piece.text
        finally:
            pieces.close()
            self.turn = Turn(reason, n_tokens, seconds, n_dropped)
            if not base:
                self._seed += 1  # /retry at a temperature must give another answer
                del self._history[: 2 * n_dropped]
                if answer or reason != "stopped":
                    self._history += [Message("user", text), Message("assistant", answer)]

    def _fit(self, text: str) -> tuple[int, list[int]]:
        """Return how many of the oldest turns to drop, and the prompt without them.

        Old turns go until `max_tokens` fit after the prompt. If even a prompt without history is too long for that, the
        answer is shorter.
        """
        messages = (*self.messages, Message("user", text))
        head, turns = (messages[:1], messages[1:]) if self.system else ((), messages)
        for n_dropped in range(len(turns) // 2 + 1):
            prompt = self.model.render((*head, *turns[2 * n_dropped :]))
            if len(prompt) + self.max_tokens <= self.model.context_tokens:
                break
        if len(prompt) >= self.model.context_tokens:
            raise InputError(
                f"This message and the system message are {len(prompt)} tokens long; "
                f"the context holds {self.model.context_tokens}.",
                "Shorten the message, or raise --context-tokens if the model allows more.",
            )
        return n_dropped, prompt
