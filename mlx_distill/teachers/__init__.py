"""Teachers: `open_teacher("anthropic:claude-sonnet-4-6")` opens one, `ask.ask(...)` asks it and saves every answer."""

from mlx_distill.teachers.base import PromptError, Reply, RetryableError, Teacher
from mlx_distill.teachers.registry import PROVIDERS, Provider, open_teacher

__all__ = ["PROVIDERS", "PromptError", "Provider", "Reply", "RetryableError", "Teacher", "open_teacher"]
