"""The stage `serve`: HTTP in a background thread; the calling thread owns the model and answers one request at a time.

Base and distilled share the weights. The server switches the adapter on or off for each request.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
import traceback
from contextlib import suppress

from mlx_lm.generate import wired_limit

from mlx_distill.errors import DistillError, MachineError
from mlx_distill.events import Note, Report, Warning, ignore
from mlx_distill.gpu_errors import explain
from mlx_distill.models.adapter import open_student
from mlx_distill.models.chat_model import ChatModel
from mlx_distill.models.generate import Sampling
from mlx_distill.serve.app import MAX_CONNECTIONS, Job, Jobs, http_server
from mlx_distill.serve.config import ServeConfig
from mlx_distill.serve.protocol import ChatRequest, Finish, RequestError, StopFilter

MAX_WAITING = 64
"""Requests that wait for the model. More are refused with 503."""
MAX_BYTES_PER_TOKEN = 64
"""A request that fits the context has fewer bytes per token, even if JSON escapes every character."""


def run(config: ServeConfig, report: Report = ignore) -> None:
    """Answer requests on 127.0.0.1 until Ctrl-C. Raises MachineError before loading if the port is not free."""
    with listen(config.port) as listener:
        student, adapter = open_student(config.model, config.adapter, report)
        with wired_limit(student.model):  # Metal: the model stays in memory between answers
            Server(ChatModel(student, adapter, config.context_tokens), config, listener, report).serve()


def listen(port: int) -> socket.socket:
    """Take a port on 127.0.0.1. Connections wait until the server starts."""
    try:
        return socket.create_server(("127.0.0.1", port), backlog=MAX_CONNECTIONS)
    except OSError as error:
        raise MachineError(
            f"Port {port} on 127.0.0.1 cannot be used ({error.strerror}).", "Choose another one with --port."
        ) from error


class Server:
    """Owns the model. All MLX work happens in the thread that calls `serve`."""

    def __init__(self, model: ChatModel, config: ServeConfig, listener: socket.socket, report: Report = ignore) -> None:
        self._model, self._config, self._listener, self._report = model, config, listener, report
        self.models = ("distilled", "base") if model.adapter else (config.model.resolve().name,)
        self._jobs: Jobs = Jobs(MAX_WAITING)

    def serve(self) -> None:
        """Answer requests until Ctrl-C or `stop`."""
        http = http_server(self.models, self._jobs, 65_536 + MAX_BYTES_PER_TOKEN * self._model.context_tokens)
        thread = threading.Thread(target=http.run, args=([self._listener],), daemon=True)
        job: Job | None = None
        try:
            thread.start()
            url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
            self._report(Note(f"{' and '.join(self.models)} at {url} (Ctrl-C stops)"))
            while (job := self._jobs.get()) is not None:
                self._answer(job)
        except KeyboardInterrupt:
            self._report(Note("Stopped."))
        finally:
            http.should_exit = True
            while thread.is_alive():
                if job:
                    job.put(RequestError("The server is stopping.", status=503))
                with suppress(queue.Empty):
                    job = self._jobs.get(timeout=0.05)

    def stop(self) -> None:
        """End `serve` after the waiting requests. Any thread may call this."""
        self._jobs.put(None)

    def _answer(self, job: Job) -> None:
        try:
            if not job.cancelled.is_set():
                self._generate(job)
        except RequestError as error:
            job.put(error)
        except DistillError as error:
            job.put(RequestError(str(error), "messages"))
        except Exception as error:  # one failed request must not end the server
            machine_error = explain(error)
            if machine_error:
                self._report(Warning(str(machine_error)))
            else:
                traceback.print_exc()
            job.put(RequestError("The model failed; the server's terminal shows why.", status=500))

    def _generate(self, job: Job) -> None:
        request, config, model = job.request, self._config, self._model
        prompt = self._render(request)
        sampling = Sampling(
            config.temperature if request.temperature is None else request.temperature,
            1.0 if request.top_p is None else request.top_p,
            config.seed if request.seed is None else request.seed,
        )
        max_tokens = request.max_completion_tokens or request.max_tokens or config.max_tokens
        chunks = model.stream(prompt, base=request.model == "base", max_tokens=max_tokens, sampling=sampling)
        started, n_tokens, reason, stop = time.monotonic(), 0, "stop", StopFilter(request.stop_texts)
        for chunk in chunks:
            if job.cancelled.is_set():
                break
            n_tokens += 1
            if text := stop.add(chunk.text, is_last=chunk.finish_reason is not None):
                job.put(text)
            if stop.found:
                break
            reason = chunk.finish_reason or reason
        chunks.close()
        job.put(Finish(reason, len(prompt), model.n_reused, n_tokens))
        ending = ", the client went away" if job.cancelled.is_set() else ""
        self._report(Note(f"{request.model}: {n_tokens} tokens in {time.monotonic() - started:.1f} s{ending}"))

    def _render(self, request: ChatRequest) -> list[int]:
        """Return the prompt's tokens. Raises RequestError if they do not fit, InputError for a control token."""
        limit = self._model.context_tokens
        if len(request.messages) > limit:  # checked before any work: each message is at least one token
            raise RequestError(f"The context holds {limit} tokens, fewer than the messages.", "messages")
        messages = request.to_messages(self._config.system)
        self._model.check(messages)
        prompt = self._model.render(messages)
        if len(prompt) >= limit:
            text = f"The prompt is {len(prompt)} tokens long, the context holds {limit}."
            raise RequestError(text, "messages", code="context_length_exceeded")
        return prompt
