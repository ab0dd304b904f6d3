"""Streaming with a memory: what a prompt has in common with the one before is not computed again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

from mlx_distill.models.generate import Piece, stream
from mlx_distill.models.load import Student


class PrefixCache:
    """Keys and values of the last prompt and its answer. They belong to one student with one adapter state."""

    def __init__(self, student: Student) -> None:
        self._student = student
        self._tokens: list[int] = []
        self._cache: list[Any] = []
        self.n_reused = 0
        """Tokens of the last prompt that were not computed again."""

    def stream(
        self, prompt: list[int], *, max_tokens: int, temperature: float, seed: int, top_p: float = 1.0
    ) -> Iterator[Piece]:
        """One answer to `prompt` (the whole of it). The memory is right also when the caller stops in the middle."""
        self.n_reused = self._trim_to(prompt)
        if not self.n_reused:
            self._cache = make_prompt_cache(self._student.model)
        self._tokens = list(prompt)
        rest = prompt[self.n_reused :]
        try:
            for piece in stream(
                self._student,
                rest,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                cache=self._cache,
            ):
                self._tokens.append(piece.token)
                yield piece
        except GeneratorExit:
            raise
        except BaseException:  # an interrupt in the middle of a step leaves layers at different lengths
            self._cache = []
            raise

    def _trim_to(self, prompt: list[int]) -> int:
        """Cut the memory to the longest common prefix and return its length: 0 where nothing can be kept.

        One token of the prompt is always left, since the model has to be asked with something.
        """
        length = 0
        for known, new in zip(self._tokens, prompt[:-1], strict=False):
            if known != new:
                break
            length += 1
        if not length or not self._cache or not can_trim_prompt_cache(self._cache):
            return 0
        extra = self._cache[0].offset - length
        return length if extra >= 0 and trim_prompt_cache(self._cache, extra) == extra else 0
