"""Who answers: one protocol, one file or folder a provider; how they are asked (asking) and what it costs (money)."""

from __future__ import annotations

from collections.abc import Callable

from mlx_distill.errors import InputError
from mlx_distill.teachers.anthropic import AnthropicTeacher
from mlx_distill.teachers.openai import OpenAITeacher
from mlx_distill.teachers.protocol import NoAnswerError, Teacher, TryLaterError
from mlx_distill.teachers.recorded import RecordedTeacher

__all__ = ["PROVIDERS", "NoAnswerError", "Teacher", "TryLaterError", "open_teacher"]

PROVIDERS: dict[str, Callable[[str], Teacher]] = {
    "anthropic": AnthropicTeacher,
    "openai": OpenAITeacher,
    "recorded": RecordedTeacher,
}
"""What stands before the colon of a teacher's name, and what makes a teacher of what stands behind it."""

HOW_TO_NAME = (
    "Write anthropic:MODEL (anthropic:claude-sonnet-4-6), openai:MODEL (any OpenAI-compatible server), recorded:FILE "
    "or recorded:sample."
)


def open_teacher(spec: str) -> Teacher:
    """The teacher that `spec` names. Costs nothing: keys and files are looked at when it is entered."""
    provider, _, name = spec.partition(":")
    if provider not in PROVIDERS:
        raise InputError(f"teacher {spec!r}: {provider!r} is not one of {', '.join(PROVIDERS)}.", HOW_TO_NAME)
    if not name.strip():
        raise InputError(f"teacher {spec!r}: nothing follows {provider + ':'!r}.", HOW_TO_NAME)
    return PROVIDERS[provider](name.strip())
