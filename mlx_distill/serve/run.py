"""The server: HTTP in threads of its own, one thread that owns the model and answers one request after another.

Both names share the weights; the adapter is switched between requests, never reloaded.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue

from mlx_distill.errors import DistillError
from mlx_distill.events import Note, Report, ignore
from mlx_distill.models.adapter import Adapter, open_student
from mlx_distill.models.conversation import check_text, context_limit
from mlx_distill.models.generate import Piece
from mlx_distill.models.load import Student
from mlx_distill.models.prefix_cache import PrefixCache
from mlx_distill.models.tokenize import render_prompt
from mlx_distill.records import Message, Messages
from mlx_distill.serve.api import ChatRequest, RequestError, Usage, until
from mlx_distill.serve.config import ServeConfig
from mlx_distill.serve.http_server import Listener


def run(config: ServeConfig, report: Report = ignore) -> None:
    """Answer requests on 127.0.0.1 until Ctrl-C. Raises MachineError, before it loads, where the port is taken."""
    with Listener(config.port) as listener:
        student, adapter = open_student(config.model, config.adapter, report)
        Server(student, adapter, config, listener).serve(report)


@dataclass(frozen=True)
class Finish:
    """The end of an answer."""

    reason: str
    """`stop` or `length`, as OpenAI's API has them."""
    usage: Usage


@dataclass
class Job:
    """A request on its way to the model, and the answer on its way back: texts, then Finish or RequestError."""

    request: ChatRequest
    answer: SimpleQueue[str | Finish | RequestError] = field(default_factory=SimpleQueue)
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass
class _Written:
    """What has been written of an answer."""

    n_tokens: int = 0
    reason: str = "stop"
    """`stop` as well where a stop text was reached before the model ended."""

    def texts(self, pieces: Iterator[Piece]) -> Iterator[str]:
        for piece in pieces:
            self.n_tokens += 1
            self.reason = piece.finish_reason or "stop"
            yield piece.text


class Server:
    """Owns the student. All work with mlx happens in the thread that calls `serve`."""

    def __init__(self, student: Student, adapter: Adapter | None, config: ServeConfig, listener: Listener) -> None:
        self._student, self._adapter, self._config = student, adapter, config
        self._context_tokens = context_limit(student, config.context_tokens)
        self.models = ("distilled", "base") if adapter else (config.model.resolve().name,)
        self._caches = {name: PrefixCache(student) for name in self.models}
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._report: Report = ignore
        self._closed = False
        self._listener = listener

    @property
    def url(self) -> str:
        """The base URL that clients are given."""
        return f"http://127.0.0.1:{self._listener.port}/v1"

    def serve(self, report: Report = ignore) -> None:
        """Answer requests until Ctrl-C or `stop`."""
        self._report = report
        job: Job | None = None
        try:
            self._listener.start(self.models, self._submit)
            report(Note(f"{' and '.join(self.models)} at {self.url} (Ctrl-C stops)"))
            while (job := self._jobs.get()) is not None:
                self._answer(job)
        except KeyboardInterrupt:
            report(Note("Stopped."))
        finally:
            self._closed = True
            self._listener.stop()
            self._refuse(job)
            while not self._jobs.empty():
                self._refuse(self._jobs.get())

    def stop(self) -> None:
        """End `serve` after the request that is being answered; may be called from any thread."""
        self._jobs.put(None)

    def _submit(self, request: ChatRequest) -> Job:
        job = Job(request)
        self._jobs.put(job)
        if self._closed:
            self._refuse(job)
        return job

    @staticmethod
    def _refuse(job: Job | None) -> None:
        if job:
            job.answer.put(RequestError("The server is stopping.", status=503))

    def _answer(self, job: Job) -> None:
        try:
            self._write(job)
        except RequestError as error:
            job.answer.put(error)
        except DistillError as error:
            job.answer.put(RequestError(str(error)))
        except Exception:  # one request must not end the server for all others; the fault is shown here
            traceback.print_exc()
            job.answer.put(RequestError("The model failed; the server's terminal says why.", status=500))

    def _write(self, job: Job) -> None:
        request, config = job.request, self._config
        messages = self._with_system(request.messages)
        for message in messages:
            check_text(self._student, message.content)
        prompt = render_prompt(self._student.tokenizer, messages)
        room = self._context_tokens - len(prompt)
        if room < 1:
            text = f"The prompt is {len(prompt)} tokens long, the context holds {self._context_tokens}."
            raise RequestError(text, "messages", code="context_length_exceeded")
        limit = min(request.max_tokens or config.max_tokens, room)
        if self._adapter:
            self._adapter.enabled = request.model == "distilled"
        cache = self._caches[request.model]
        temperature = config.temperature if request.temperature is None else request.temperature
        seed = config.seed if request.seed is None else request.seed
        pieces = cache.stream(prompt, max_tokens=limit, temperature=temperature, top_p=request.top_p, seed=seed)
        started, written = time.monotonic(), _Written()
        for text in until(request.stop, written.texts(pieces)):
            if job.cancelled.is_set():
                break
            if text:
                job.answer.put(text)
        job.answer.put(Finish(written.reason, Usage(len(prompt), cache.n_reused, written.n_tokens)))
        seconds = time.monotonic() - started
        gone = ", the client went away" if job.cancelled.is_set() else ""
        self._report(Note(f"{request.model}: {written.n_tokens} tokens in {seconds:.1f} s{gone}"))

    def _with_system(self, messages: Messages) -> Messages:
        """A request without a system message is answered under the one that the student was trained with."""
        if self._config.system and all(message.role != "system" for message in messages):
            return (Message("system", self._config.system), *messages)
        return messages
