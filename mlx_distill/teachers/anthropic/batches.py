"""The Message Batches API: many requests at half price, answered within a day."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mlx_distill.errors import TeacherError
from mlx_distill.records import Request
from mlx_distill.teachers.anthropic.connection import AnthropicConnection
from mlx_distill.teachers.anthropic.messages import parameters
from mlx_distill.teachers.batching import BatchGoneError, BatchResult, BatchState
from mlx_distill.teachers.protocol import NoAnswerError, UnreadableError

if TYPE_CHECKING:
    from anthropic.types.messages import MessageBatchIndividualResponse

FRAME_BYTES = 128
"""More than what stands around the parameters of one request: its custom_id and the braces."""
FINAL_ERRORS = frozenset({"invalid_request_error", "request_too_large", "not_found_error", "permission_error"})
"""Errors of a request that would come again."""
ENDS = {"expired": "it expired", "canceled": "it was cancelled"}
"""Results without an answer that are no errors, as reasons."""
LEAVE_OUT = "Leave out --batch (in distill.toml: batch), to ask one by one."


class AnthropicBatches:
    """The batches of the account, over the teacher's connection."""

    most_requests = 100_000
    most_bytes = 250_000_000
    """Of the 256 MB that are allowed, with room for what the SDK writes otherwise than it is counted here."""

    def __init__(self, connection: AnthropicConnection, model: str) -> None:
        self._connection, self._model = connection, model

    def size_of(self, request: Request) -> int:
        return len(json.dumps(parameters(self._model, request)).encode()) + FRAME_BYTES

    async def create(self, requests: Mapping[str, Request]) -> BatchState:
        import anthropic

        entries: Any = [{"custom_id": name, "params": parameters(self._model, one)} for name, one in requests.items()]
        try:
            with self._connection.failures_told():
                return self._state(await self._connection.client.messages.batches.create(requests=entries))
        except NoAnswerError as error:
            raise TeacherError(f"The batch was refused: {error.reason}.", LEAVE_OUT) from error
        except TeacherError as error:
            if isinstance(error.__cause__, anthropic.NotFoundError):  # whether a model exists is told with the results
                raise TeacherError(f"{self._connection.address} has no batches (404).", LEAVE_OUT) from error
            raise

    async def state(self, batch_id: str) -> BatchState:
        import anthropic

        with self._connection.failures_told():
            try:
                return self._state(await self._connection.client.messages.batches.retrieve(batch_id))
            except anthropic.NotFoundError as error:
                raise BatchGoneError(f"{batch_id} is not there any more") from error

    async def since(self, moment: datetime) -> list[BatchState]:
        import anthropic

        found: list[BatchState] = []
        with self._connection.failures_told():
            try:
                async for batch in self._connection.client.messages.batches.list(limit=100):  # the newest first
                    state = self._state(batch)
                    if state.created_at < moment:
                        break
                    found.append(state)
            except anthropic.NotFoundError as error:
                raise BatchGoneError(f"{self._connection.address} has no list of batches") from error
        return found

    async def results(self, batch_id: str) -> AsyncGenerator[BatchResult, None]:
        import anthropic

        with self._connection.failures_told():
            try:
                lines = await self._connection.client.messages.batches.results(batch_id)
            except anthropic.NotFoundError as error:
                raise BatchGoneError(f"{batch_id} is not there any more") from error
            except anthropic.APIError:
                raise
            except anthropic.AnthropicError as error:  # it names no address of its results, which are kept for 29 days
                raise BatchGoneError(f"the results of {batch_id} are not there any more") from error
            try:
                async for line in lines:
                    result = self._result(line)
                    if result:
                        yield result
            finally:
                await lines.close()

    def _state(self, batch: object) -> BatchState:
        from anthropic.types.messages import MessageBatch

        # The SDK does not check shapes: any JSON arrives as a batch of nothing.
        if not isinstance(batch, MessageBatch) or not batch.id:
            raise self._connection.unreadable("batch")
        if not isinstance(batch.created_at, datetime) or not isinstance(batch.expires_at, datetime):
            raise self._connection.unreadable("batch")
        try:
            counts = batch.request_counts
            n_done = counts.succeeded + counts.errored + counts.canceled + counts.expired
            n_requests = n_done + counts.processing
        except (AttributeError, TypeError) as error:
            raise self._connection.unreadable("batch") from error
        ended = batch.processing_status == "ended"
        return BatchState(batch.id, batch.created_at, batch.expires_at, n_requests, n_done, ended)

    def _result(self, line: MessageBatchIndividualResponse) -> BatchResult | None:
        """What became of a request; None for a line of an odd shape, which the SDK does not check either."""
        try:
            return self._read(line)
        except (AttributeError, KeyError, TypeError, UnreadableError):
            return None

    def _read(self, line: MessageBatchIndividualResponse) -> BatchResult:
        result = line.result
        if result.type == "succeeded":
            return BatchResult(line.custom_id, self._connection.answer_of(result.message))
        if result.type == "errored":
            error = result.error.error
            said = self._connection.clean(error.message)
            return BatchResult(line.custom_id, None, f"{error.type}: {said}", again=error.type not in FINAL_ERRORS)
        return BatchResult(line.custom_id, None, ENDS[result.type], again=result.type == "expired")
