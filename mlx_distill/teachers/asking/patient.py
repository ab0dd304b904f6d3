"""Calls to a provider that are made again while it is out of reach, for as long as patience lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mlx_distill.errors import TeacherError
from mlx_distill.teachers.asking.pacing import Patience, Trouble
from mlx_distill.teachers.asking.telling import Teller, span
from mlx_distill.teachers.protocol import NoAnswerError, TryLaterError

Result = TypeVar("Result")


class Patient:
    """Makes such calls to one teacher; `step` is what to do when patience has ended."""

    def __init__(self, name: str, patience: Patience, teller: Teller, step: str) -> None:
        self._name, self._patience, self._teller, self._step = name, patience, teller, step

    @property
    def limit_seconds(self) -> float:
        """How long a call is made again."""
        return self._patience.limit_seconds

    async def call(self, make: Callable[[], Awaitable[Result]], *, once_charged: bool = False) -> Result:
        """What `make` brings.

        Raises TeacherError where the teacher refuses or stays out of reach. With `once_charged` a TryLaterError is
        raised where the call may have done its work.
        """
        trouble = Trouble(self._patience)
        while True:
            try:
                return await make()
            except NoAnswerError as error:
                raise TeacherError(f"{self._name}: {error.reason}.") from error
            except TryLaterError as error:
                if once_charged and error.may_be_charged:
                    raise
                wait = trouble.wait_seconds(error)
                if wait is None:
                    limit = span(self._patience.limit_seconds)
                    raise TeacherError(
                        f"{self._name} cannot be waited for longer than {limit}: {error.reason}.", self._step
                    ) from error
                self._teller.trouble(error, wait)
                await asyncio.sleep(wait)
