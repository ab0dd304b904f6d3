"""Every error a person can cause or mend; the command line turns these into a message and an exit code.

Anything else is a bug and keeps its traceback.

DistillError                 exit 1
├── InputError               a file, record or setting is wrong
├── MissingError             something that an earlier step makes, or that must be installed, is not there
├── TeacherError             the teacher cannot be asked (key, model, balance, permission)
├── BudgetError              what is left to ask may cost more than --max-cost allows
├── MachineError             this machine cannot do it (memory, disk, platform, no network)
├── VerificationError        a result was made and failed its check
└── Interrupted              Ctrl-C or SIGTERM, after everything was saved: exit 130 or 143
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class DistillError(Exception):
    """Says where, what and what to do next.

    `message` is where and what in one sentence; `next_step` is what to type or change; `problems` lists every fault
    of a file together, so that all can be mended at once.
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
    """A file, record, flag or setting that the user gave is wrong."""


class MissingError(DistillError):
    """Something that an earlier step makes, or that has to be installed, is not there."""


class TeacherError(DistillError):
    """The teacher cannot be asked: no key, an unknown model, no balance, no permission."""


class BudgetError(DistillError):
    """Asking on may cost more than the project may spend."""


class MachineError(DistillError):
    """This machine cannot do it: memory, disk, platform, network."""


class VerificationError(DistillError):
    """A result was made, checked, and failed its check; it is not left where a good one belongs."""


class Interrupted(DistillError):  # noqa: N818 - not an error in the user's eyes
    """The user stopped it (Ctrl-C: 130, SIGTERM: 143) and everything up to then is saved."""

    def __init__(self, message: str, next_step: str = "", exit_code: int = 130) -> None:
        super().__init__(message, next_step)
        self.exit_code = exit_code


MOST_PROBLEMS_SHOWN = 20


def raise_problems(path: Path, problems: Sequence[str], next_step: str) -> None:
    """Raise one InputError that lists the problems of `path` (the first 20), or return if there are none."""
    if not problems:
        return
    shown = list(problems[:MOST_PROBLEMS_SHOWN])
    if len(problems) > len(shown):
        shown.append(f"... and {len(problems) - len(shown)} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise InputError(f"{path}: {count}.", next_step, shown)
