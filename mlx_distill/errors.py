"""Errors that a user can cause or fix. The command line turns them into a message and an exit code.

Any other exception is a bug and keeps its traceback.

DistillError                 exit 1
├── InputError               a file, record or setting is wrong
├── MissingError             something is missing that an earlier step makes or that must be installed
├── TeacherError             the teacher cannot answer (key, model, balance, permission)
├── BudgetError              the next request could exceed --max-cost
├── MachineError             this machine cannot do it (memory, disk, platform, no network)
├── VerificationError        a result failed its check
└── Interrupted              Ctrl-C or SIGTERM, after everything was saved: exit 130 or 143
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlx_distill.formatting import plural

MAX_PROBLEMS = 20
"""Maximum number of problems that one message lists."""


class DistillError(Exception):
    """Says what is wrong, where, and what to do next.

    `message` is one sentence: where and what. `next_step` says what to type or change. `problems` lists all problems
    of a file, so that the user can fix them together.
    """

    exit_code = 1

    def __init__(self, message: str, next_step: str = "", problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        self.problems = tuple(problems)

    def __str__(self) -> str:
        lines = [self.message, *(f"  {problem}" for problem in self.problems)]
        return "\n".join([*lines, self.next_step] if self.next_step else lines)


class InputError(DistillError):
    """A file, record, option or setting from the user is wrong."""


class MissingError(DistillError):
    """Something is missing that an earlier step makes or that must be installed."""


class TeacherError(DistillError):
    """The teacher cannot answer: no key, an unknown model, no balance, no permission."""


class BudgetError(DistillError):
    """The next request could exceed the budget of the project (`--max-cost`)."""


class MachineError(DistillError):
    """This machine cannot do it: memory, disk, platform, network."""


class VerificationError(DistillError):
    """A result failed its check. The command does not keep it as a good one."""


class Interrupted(DistillError):  # noqa: N818 - not an error for the user
    """The user stopped the command (Ctrl-C: 130, SIGTERM: 143). Everything so far is saved."""

    def __init__(self, message: str, next_step: str = "", exit_code: int = 130) -> None:
        super().__init__(message, next_step)
        self.exit_code = exit_code


def raise_problems(path: Path, problems: Sequence[str], next_step: str) -> None:
    """Raise one InputError that lists the first 20 problems of `path`; return if there are none."""
    if not problems:
        return
    shown = list(problems[:MAX_PROBLEMS])
    if len(problems) > len(shown):
        shown.append(f"... and {len(problems) - len(shown)} more")
    raise InputError(f"{path}: {plural(len(problems), 'problem')}.", next_step, shown)
