"""A key-value cache that is kept between prompts: a common prefix is computed once."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

from mlx_distill.models.generate import GREEDY, Sampling, TextChunk, stream
from mlx_distill.models.load import Student


class PrefixCache:
    """Keys and values of the last prompt and its answer, for one student in one adapter state."""

    def __init__(self, student: Student) -> None:
        self._student = student
        self._tokens: list[int] = []
        self._cache: list[Any] = []
        self.n_reused = 0
        """Number of tokens of the last prompt that came from the cache."""

    def stream(
        self, prompt: list[int], *, max_tokens: int, sampling: Sampling = GREEDY
    ) -> Generator[TextChunk, None, None]:
        """Stream the answer to a whole prompt. The cache stays valid if the caller stops early."""
        self.n_reused = self._trim_to(prompt)
        if not self.n_reused:
            self._cache = make_prompt_cache(self._student.model)
        self._tokens = list(prompt)
        chunks = stream(
            self._student,
            prompt[self.n_reused :],
            max_tokens=max_tokens,
            sampling=sampling,
            cache=self._cache,
        )
        try:
            for chunk in chunks:
                self._tokens.append(chunk.token)
                yield chunk
        except GeneratorExit:
            raise
        except BaseException:  # an interrupt inside a model step leaves the layers at different lengths
            self._cache = []
            raise

    def _trim_to(self, prompt: list[int]) -> int:
        """Cut the cache to the longest common prefix and return its length; 0 if nothing can be reused.

        The last token of the prompt is never reused: the model needs at least one token as input.
        """
        length = 0
        for cached, new in zip(self._tokens, prompt[:-1], strict=False):
            if cached != new:
                break
            length += 1
        if not length or not self._cache or not can_trim_prompt_cache(self._cache):
            return 0
        extra = self._cache[0].offset - length
        return length if extra >= 0 and trim_prompt_cache(self._cache, extra) == extra else 0
