"""A conversation: its history, its budget of tokens, and the next answer."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass

from mlx_distill.errors import InputError
from mlx_distill.models.adapter import Adapter
from mlx_distill.models.config import DEFAULT_CONTEXT
from mlx_distill.models.load import Student
from mlx_distill.models.prefix_cache import PrefixCache
from mlx_distill.models.tokenize import control_tokens, render_prompt
from mlx_distill.records import Message, Messages


@dataclass(frozen=True)
class Turn:
    """How the last answer came about."""

    finish_reason: str
    """`stop`: the model ended its turn; `length`: cut off at the limit; `stopped`: the user stopped it."""
    n_tokens: int
    seconds: float
    """From the first token to the last; the prompt's time is not in it."""
    n_prompt: int
    """Tokens of the whole prompt."""
    n_reused: int
    """Tokens of the prompt that were still known from the turn before."""
    n_dropped: int
    """Whole turns that left the history because the context was full."""

    @property
    def tokens_per_second(self) -> float:
        return (self.n_tokens - 1) / self.seconds if self.n_tokens > 1 and self.seconds > 0 else 0.0


class Conversation:
    """Asks a student turn by turn. What the student's tokenizer would read as control tokens is refused as input.

    With the student's `adapter`, the base can be asked as well, over the same copy of the weights.
    """

    def __init__(
        self,
        student: Student,
        adapter: Adapter | None = None,
        *,
        system: str = "",
        max_tokens: int = 1024,
        context_tokens: int = 0,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.student = student
        self.adapter = adapter
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.context_tokens = context_limit(student, context_tokens)
        self.turn: Turn | None = None
        self._seed = seed
        self._system = system
        self._history: list[Message] = []
        self._cache = PrefixCache(student)
        self._base_cache = PrefixCache(student)

    @property
    def system(self) -> str:
        return self._system

    @property
    def messages(self) -> Messages:
        """System message and history."""
        head = [Message("system", self._system)] if self._system else []
        return (*head, *self._history)

    def start_over(self, system: str | None = None) -> None:
        """Forget the history; with `system`, go on under another system message."""
        self._history.clear()
        self._system = self._system if system is None else system

    def take_back(self) -> str | None:
        """Remove the last turn and return what the user asked in it; None where there is none."""
        if not self._history:
            return None
        question = self._history[-2].content
        del self._history[-2:]
        return question

    def ask(self, text: str) -> Generator[str, None, None]:
        """Stream the answer to `text`, whole characters at a time; afterwards `turn` says how it went.

        Closing the generator stops the answer: what was written stays in the history. Raises InputError, and changes
        nothing, where the text alone does not fit the context or holds the model's own control tokens.
        """
        dropped, prompt = self._prepare(text)
        del self._history[: 2 * dropped]
        return self._answer(text, prompt, dropped)

    def ask_base(self, text: str) -> Generator[str, None, None]:
        """Stream what the base would answer in the same place, with the same seed; the history stays as it is.

        Like `ask` in all else. The adapter is off only while the generator runs.
        """
        dropped, prompt = self._prepare(text)
        return self._base_answer(prompt, dropped)

    def _prepare(self, text: str) -> tuple[int, list[int]]:
        self.turn = None
        check_text(self.student, text)
        return self._fit(text)

    def _answer(self, text: str, prompt: list[int], dropped: int) -> Generator[str, None, None]:
        written: list[str] = []
        pieces = self._stream(self._cache, prompt, dropped)
        try:
            for piece in pieces:
                written.append(piece)
                yield piece
        finally:
            pieces.close()
            self._seed += 1  # so that /retry at a temperature says something else
            answer = "".join(written)
            if answer or (self.turn and self.turn.finish_reason != "stopped"):
                self._history += [Message("user", text), Message("assistant", answer)]

    def _base_answer(self, prompt: list[int], dropped: int) -> Generator[str, None, None]:
        if self.adapter:
            self.adapter.enabled = False
        try:
            yield from self._stream(self._base_cache, prompt, dropped)
        finally:
            if self.adapter:
                self.adapter.enabled = True

    def _stream(self, cache: PrefixCache, prompt: list[int], dropped: int) -> Generator[str, None, None]:
        limit = min(self.max_tokens, self.context_tokens - len(prompt))
        reason, n_tokens, seconds, first = "stopped", 0, 0.0, 0.0
        pieces = cache.stream(prompt, max_tokens=limit, temperature=self.temperature, seed=self._seed)
        try:
            for piece in pieces:
                n_tokens += 1
                first = first or time.perf_counter()
                seconds = time.perf_counter() - first
                reason = piece.finish_reason or reason
                yield piece.text
        finally:
            self.turn = Turn(reason, n_tokens, seconds, len(prompt), cache.n_reused, dropped)

    def _fit(self, text: str) -> tuple[int, list[int]]:
        """How many of the oldest turns have to go, and the prompt without them.

        Room is kept for a whole answer; the last resort, with no history left, is a shorter answer.
        """
        question = Message("user", text)
        head = [Message("system", self._system)] if self._system else []
        n_turns = len(self._history) // 2
        prompt: list[int] = []
        for dropped in range(n_turns + 1):
            prompt = render_prompt(self.student.tokenizer, (*head, *self._history[2 * dropped :], question))
            if len(prompt) + self.max_tokens <= self.context_tokens:
                return dropped, prompt
        if len(prompt) >= self.context_tokens:
            raise InputError(
                f"This message is {len(prompt)} tokens long with the system message; "
                f"the context holds {self.context_tokens}.",
                "Shorten it, or raise --context-tokens where the model allows more.",
            )
        return n_turns, prompt


def context_limit(student: Student, wanted: int) -> int:
    """Tokens of prompt and answer together: what was asked for, within what the model was made for."""
    most = student.config.get("max_position_embeddings")
    most = most if isinstance(most, int) and most > 0 else None
    if not wanted:
        return min(DEFAULT_CONTEXT, most or DEFAULT_CONTEXT)
    if most and wanted > most:
        raise InputError(
            f"context_tokens is {wanted}, but {student.path} was made for {most} tokens.", f"Give at most {most}."
        )
    return wanted


def check_text(student: Student, text: str) -> None:
    """InputError where `text` holds a control token: the model would take it for the end or start of a turn."""
    found = [token for token in control_tokens(student.tokenizer) if token in text]
    if found:
        raise InputError(
            f"The text contains {', '.join(found)}, which this model reads as a control token.", "Leave it out."
        )
