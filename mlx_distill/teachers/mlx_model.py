"""A model on this machine as a teacher: `mlx:FOLDER`, `mlx:OWNER/NAME`, or `self`, the student.

One thread loads the model and owns mlx-lm's batch generator. Requests join the running batch as they arrive and leave
it as they end, so the number of requests at once is the batch size.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

import mlx.core as mx
from mlx_lm.generate import BatchGenerator

from mlx_distill import device, gpu_errors
from mlx_distill.errors import InputError
from mlx_distill.models.config import MLX, SELF
from mlx_distill.models.generate import MIN_SAMPLING, default_batch_size
from mlx_distill.models.load import Student, load_student, load_tokenizer
from mlx_distill.models.local_teacher import check_memory, teacher_folder
from mlx_distill.models.tokenize import check_chat_template, render_prompt
from mlx_distill.records import Answer, Request, Usage
from mlx_distill.teachers.base import PromptError, Reply
from mlx_distill.teachers.registry import teacher_name

MAX_BATCH_SIZE = 1000
"""The runner limits the requests in flight, so the generator itself sets no limit."""
SMALLER = (
    "Every answer so far is saved: run the same command again. If it happens again, ask fewer at once "
    "(--concurrency 4), shorten the answers (--max-tokens), or choose a smaller or a 4-bit teacher."
)


class MlxTeacher:
    """Answers with a model of this machine. Equal requests get equal answers, except for rounding in other batches."""

    terms = ""
    billed_model = ""
    max_retry_tokens = 0  # a small model that does not end an answer seldom ends it later

    def __init__(self, source: str, student: Path | None = None) -> None:
        if not source and student is None:
            raise InputError(
                "teacher 'self' is the student, and no student is named.",
                "Run the command in a project folder, or name the student's folder with --model.",
            )
        self._spec, self._student = f"{MLX}{source}" if source else SELF, student or Path()
        self.name, self.model = teacher_name(self._spec, student), source or self._student.name
        self._writer: _Writer | None = None

    @property
    def default_concurrency(self) -> int:
        """The batch size that suits the device."""
        return default_batch_size()

    async def __aenter__(self) -> Self:
        self._writer = _Writer(lambda: _load(self._spec, self._student))
        self._loaded = await asyncio.wrap_future(self._writer.loaded)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer:
            self._writer.stop()
            await asyncio.to_thread(self._writer.join)
            self._writer = None
            del self._loaded
            device.release_memory()

    async def complete(self, request: Request) -> Reply:
        """Write the answer. Raises PromptError if the prompt cannot be rendered, or fills the model's context."""
        assert self._writer, "the teacher is not entered"
        tokenizer = self._loaded.tokenizer
        try:
            prompt = render_prompt(tokenizer, request.messages)
        except InputError as error:
            raise PromptError(error.message) from error
        context = self._loaded.config.get("max_position_embeddings")
        max_tokens = request.max_tokens
        if isinstance(context, int):
            max_tokens = min(max_tokens, context - len(prompt))
        if max_tokens < 1:
            raise PromptError(f"its {len(prompt)} tokens fill the model's context of {context}")
        began = time.monotonic()
        job = _Job(prompt, max_tokens, _sampler(request))
        tokens, ended = await asyncio.wrap_future(self._writer.write(job))
        answer = Answer(
            text=_opened_thought(tokenizer.decode(prompt[-8:])) + tokenizer.decode(tokens),
            stop_reason="end_turn" if ended else "max_tokens",
            model=self.model,
            usage=Usage(len(prompt), len(tokens) + ended),
            cost_usd=0.0,
            seconds=time.monotonic() - began,
        )
        return Reply(answer)


def _load(spec: str, student: Path) -> Student:
    folder = teacher_folder(spec, student)
    check_chat_template(load_tokenizer(folder))
    check_memory(folder)
    return load_student(folder, plain_head=False)


def _opened_thought(end_of_prompt: str) -> str:
    """Return the `<think>` that a template writes before the answer: it belongs to the answer's text."""
    _, opening, rest = end_of_prompt.rpartition("<think>")
    return opening + rest if not rest.strip() else ""


Sampler = Callable[[mx.array], mx.array]


def _sampler(request: Request) -> Sampler | None:
    """Return how to draw a request's tokens: None takes the most probable one.

    Each request has random numbers of its own, so its answer does not depend on the others in the batch.
    """
    if request.temperature < MIN_SAMPLING:
        return None
    seed = int(request.prompt_key[:16], 16)  # it covers the seed and the number of the sample

    state: list[mx.array] = []

    def sample(log_probs: mx.array) -> mx.array:
        state[:] = mx.random.split(state[0] if state else mx.random.key(seed))
        return mx.random.categorical(log_probs / request.temperature, key=state[1])

    return sample


@dataclass
class _Job:
    """One answer that is being written."""

    prompt: list[int]
    max_tokens: int
    sampler: Sampler | None
    tokens: list[int] = field(default_factory=list)
    """Without the end token."""
    answer: Future[tuple[list[int], bool]] = field(default_factory=Future)
    """The tokens, and whether the model ended its turn. Cancelled if nobody waits for it any more."""


class _Writer(threading.Thread):
    """The thread that owns the model: arrays and streams of MLX belong to the thread that made them."""

    def __init__(self, load: Callable[[], Student]) -> None:
        super().__init__(name="local teacher", daemon=True)  # a second Ctrl-C does not wait for it
        self.loaded: Future[Student] = Future()
        self._load = load
        self._arrivals: SimpleQueue[_Job | None] = SimpleQueue()
        self._jobs: dict[int, _Job] = {}
        self.start()

    def write(self, job: _Job) -> Future[tuple[list[int], bool]]:
        """Add a job to the batch."""
        self._arrivals.put(job)
        return job.answer

    def stop(self) -> None:
        """End the thread after the current step."""
        self._arrivals.put(None)

    def run(self) -> None:
        try:
            student = self._load()
        except BaseException as error:
            self.loaded.set_exception(_explained(error))
            return
        self.loaded.set_result(student)
        try:
            self._write(student)
        except BaseException as error:
            self._fail(_explained(error))

    def _write(self, student: Student) -> None:
        stream = mx.default_stream(mx.default_device())  # this thread's own
        stop_tokens = [[token] for token in sorted(student.tokenizer.eos_token_ids)]
        generator = BatchGenerator(
            student.model, stop_tokens=stop_tokens, completion_batch_size=MAX_BATCH_SIZE, stream=stream
        )
        try:
            for job in self._arriving():
                if job:
                    [uid] = generator.insert([job.prompt], [job.max_tokens], samplers=[job.sampler])
                    self._jobs[uid] = job
                    continue
                cancelled = [uid for uid, job in self._jobs.items() if job.answer.cancelled()]
                if cancelled:
                    generator.remove(cancelled)
                    self._jobs = {uid: job for uid, job in self._jobs.items() if uid not in cancelled}
                for response in generator.next()[1]:
                    self._add(response)
        finally:
            generator.close()

    def _arriving(self) -> Iterator[_Job | None]:
        """Yield jobs as they arrive, and None when it is time for a step. Ends when `stop` is called."""
        while True:
            try:
                job = self._arrivals.get(block=not self._jobs)
            except Empty:
                yield None
                continue
            if job is None:
                return
            yield job

    def _add(self, response: Any) -> None:
        """Add a token to its job, and end the job with its last token."""
        job, reason = self._jobs[response.uid], response.finish_reason
        if reason != "stop":
            job.tokens.append(response.token)
        if reason is not None:
            del self._jobs[response.uid]
            if job.answer.set_running_or_notify_cancel():
                job.answer.set_result((job.tokens, reason == "stop"))

    def _fail(self, error: BaseException) -> None:
        """Give the error to all jobs, and to those that still arrive."""
        waiting = list(self._jobs.values())
        while True:
            for job in waiting:
                if job.answer.set_running_or_notify_cancel():
                    job.answer.set_exception(error)
            arrived = self._arrivals.get()
            if arrived is None:
                return
            waiting = [arrived]


def _explained(error: BaseException) -> BaseException:
    """Return a MachineError with advice for MLX's errors about memory and the GPU."""
    explained = gpu_errors.explain(error) if isinstance(error, (RuntimeError, MemoryError)) else None
    if explained is None:
        return error
    explained.next_step = SMALLER
    return explained
