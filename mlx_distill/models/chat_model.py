"""A student that answers as base and as distilled, with one copy of the weights."""

from __future__ import annotations

from collections.abc import Generator

from mlx_distill.errors import InputError
from mlx_distill.models.adapter import Adapter
from mlx_distill.models.config import DEFAULT_CONTEXT_TOKENS
from mlx_distill.models.generate import GREEDY, Sampling, TextChunk
from mlx_distill.models.load import Student
from mlx_distill.models.prefix_cache import PrefixCache
from mlx_distill.models.tokenize import control_tokens, find_control_token, render_prompt
from mlx_distill.records import Messages


class ChatModel:
    """A student and its optional adapter, with one prefix cache for each adapter state.

    Raises InputError if `context_tokens` is more than the model's maximum; 0 means the default.
    """

    def __init__(self, student: Student, adapter: Adapter | None = None, context_tokens: int = 0) -> None:
        self.student = student
        self.adapter = adapter
        self.context_tokens = _context_tokens(student, context_tokens)
        self._control_tokens = control_tokens(student.tokenizer)
        self._cache = self._last_cache = PrefixCache(student)
        self._base_cache = PrefixCache(student)

    @property
    def n_reused(self) -> int:
        """Number of tokens of the last prompt that came from the cache."""
        return self._last_cache.n_reused

    def check(self, messages: Messages) -> None:
        """Raise InputError for a control token: the model would read it as the start or end of a turn."""
        if found := find_control_token(messages, self._control_tokens):
            raise InputError(f"{found[0].upper()}{found[1:]}, a control token of this model.", "Remove it.")

    def render(self, messages: Messages) -> list[int]:
        """Return the tokens of the prompt."""
        return render_prompt(self.student.tokenizer, messages)

    def stream(
        self, prompt: list[int], *, base: bool = False, max_tokens: int, sampling: Sampling = GREEDY
    ) -> Generator[TextChunk, None, None]:
        """Stream an answer that fits the context. With `base`, the adapter is off while the generator runs."""
        cache = self._last_cache = self._base_cache if base else self._cache
        if self.adapter:
            self.adapter.enabled = not base
        max_tokens = min(max_tokens, self.context_tokens - len(prompt))
        try:
            yield from cache.stream(prompt, max_tokens=max_tokens, sampling=sampling)
        finally:
            if self.adapter:
                self.adapter.enabled = True


def _context_tokens(student: Student, wanted: int) -> int:
    declared = student.config.get("max_position_embeddings")
    maximum = declared if isinstance(declared, int) and declared > 0 else max(wanted, DEFAULT_CONTEXT_TOKENS)
    if wanted > maximum:
        raise InputError(
            f"context_tokens is {wanted}, but the maximum of {student.path} is {maximum}.", f"Give at most {maximum}."
        )
    return wanted or min(DEFAULT_CONTEXT_TOKENS, maximum)
