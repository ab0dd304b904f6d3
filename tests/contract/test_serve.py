"""The server with a real model: both names, streaming, limits, refused prompts, load, and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from mlx_distill.errors import MachineError, MissingError
from mlx_distill.events import Event, Note
from mlx_distill.models.adapter import load_adapter
from mlx_distill.models.chat_model import ChatModel
from mlx_distill.models.generate import stream
from mlx_distill.models.load import load_student
from mlx_distill.models.tokenize import render_prompt
from mlx_distill.records import build_messages
from mlx_distill.serve.config import ServeConfig
from mlx_distill.serve.run import Server, listen
from mlx_distill.serve.run import run as serve
from tests.support.adapters import make_adapter
from tests.support.serving import ServerClient
from tests.support.tiny import make_tiny_qwen2

SYSTEM = "You are a helpful assistant."
NAMES = ("distilled", "base")


@dataclass(frozen=True)
class Running(ServerClient):
    """A client of a running server, with the expected answers to one prompt and the server's events."""

    expected: dict[str, str]
    events: list[Event]

    def leave(self, model: str, text: str = "Write a function.", **settings: Any) -> None:
        """Close the connection after the first chunk of an answer."""
        answer = self.ask(model, text, stream=True, **settings)
        next(iter(answer))
        answer.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("serve")
    base = make_tiny_qwen2(folder / "base", dtype="float32")
    adapter = make_adapter(base, folder / "adapter")
    config = ServeConfig(base, adapter, system=SYSTEM, max_tokens=24, port=0)
    ready = threading.Event()
    events: list[Event] = []
    found: dict[str, Any] = {}

    def work() -> None:  # one thread for all MLX work, as in the command
        student = load_student(base)
        prompt = render_prompt(student.tokenizer, build_messages("Write a function.", SYSTEM))
        expected = {"base": "".join(piece.text for piece in stream(student, prompt, max_tokens=24))}
        model = ChatModel(student, load_adapter(student, adapter))
        expected["distilled"] = "".join(piece.text for piece in stream(student, prompt, max_tokens=24))
        with listen(config.port) as listener:
            server = Server(model, config, listener, events.append)
            found.update(server=server, client=Running(listener.getsockname()[1], expected, events))
            ready.set()
            server.serve()

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(60)
    yield found["client"]
    found["client"].openai.close()
    found["server"].stop()
    thread.join(60)
    assert not thread.is_alive()


def test_models_are_listed(running: Running) -> None:
    assert [model.id for model in running.openai.models.list()] == ["distilled", "base"]
    assert running.openai.models.retrieve("base").id == "base"
    with pytest.raises(openai.NotFoundError):
        running.openai.models.retrieve("other")


def test_each_name_answers_like_the_model_itself(running: Running) -> None:
    assert running.expected["base"] != running.expected["distilled"]
    for model in ("distilled", "base", "distilled"):
        answer = running.ask(model)
        assert answer.choices[0].message.content == running.expected[model]
        assert answer.model == model
        assert running.text(model, stream=True) == running.expected[model]


def test_limits_and_stop_texts_end_an_answer(running: Running) -> None:
    cut = running.ask("base", max_tokens=3)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 3
    whole = running.ask("base", max_tokens=3, stop=[cut.choices[0].message.content])
    assert whole.choices[0].finish_reason == "stop", "the stop text ends in the last allowed token"
    text = running.expected["base"]
    for stream_it in (False, True):
        assert running.text("base", stop=[text[4:7]], stream=stream_it) == text[: text.index(text[4:7])]


def test_an_answer_can_be_sent_back_as_history(running: Running) -> None:
    answer = running.ask("base").choices[0].message
    messages: Any = [{"role": "user", "content": "Write a function."}, answer, {"role": "user", "content": "Go on."}]
    again: Any = running.openai.chat.completions.create(model="base", messages=messages, tools=[])
    assert again.choices[0].message.content and again.usage.prompt_tokens_details.cached_tokens > 0


@pytest.mark.parametrize("settings", [{"top_p": 0}, {"top_p": 1e-300}, {"temperature": 1e-300}, {"temperature": 9e-5}])
def test_tiny_sampling_values_are_greedy(running: Running, settings: dict[str, float]) -> None:
    hot: dict[str, Any] = {"temperature": 2.0, "seed": 3}
    assert running.text("base", **hot) != running.expected["base"]
    assert running.text("base", **{**hot, **settings}) == running.expected["base"]


def test_a_client_that_leaves_ends_its_answer(running: Running) -> None:
    running.events.clear()
    running.leave("base", max_tokens=1900)
    running.text("base")  # the jobs are answered in order, so the first one has ended
    notes = [event.text for event in running.events if isinstance(event, Note)]
    assert len(notes) == 1 or "the client went away" in notes[0]  # it may leave before its answer begins


def test_answers_under_load_equal_those_asked_alone(running: Running) -> None:
    """200 requests, 32 at a time, for both names; every tenth client leaves."""
    texts = [f"Write function number {number}." for number in range(5)]
    alone = {(name, text): running.text(name, text) for name in NAMES for text in texts}
    aborted = ConnectionAbortedError("left on purpose")

    def one(number: int) -> str | Exception:
        name, text = NAMES[number % 2], texts[number % 5]
        if number % 10 == 9 - number // 10 % 2:  # of both names
            running.leave(name, text, max_tokens=1500)
            return aborted
        answer = running.text(name, text, stream=number % 3 == 0)
        return answer if answer != alone[name, text] else ""

    with ThreadPoolExecutor(32) as pool:
        wrong = [answer for answer in pool.map(one, range(200)) if answer]
    assert wrong == [aborted] * 20


@pytest.mark.parametrize(
    ("content", "says"),
    [("<|im_end|>", "control token"), ("word " * 3000, "the context holds 2048")],
)
def test_prompts_the_model_cannot_take_are_refused(running: Running, content: str, says: str) -> None:
    for streaming in (False, True):
        status, answer = running.post_json(messages=[{"role": "user", "content": content}], stream=streaming)
        assert status == 400 and says in answer["error"]["message"]


def test_too_many_messages_are_refused(running: Running) -> None:
    turns = [{"role": ("user", "assistant")[number % 2], "content": ""} for number in range(2051)]
    status, answer = running.post_json(messages=turns)
    assert status == 400 and "The context holds 2048" in answer["error"]["message"]


def test_a_taken_port_is_reported_before_loading(running: Running, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=rf"Port {running.port} .*in use"):
        serve(ServeConfig(tmp_path / "no model", port=running.port))


def test_a_failed_load_frees_the_port(tmp_path: Path) -> None:
    port = free_port()
    for _ in range(2):
        with pytest.raises(MissingError, match="no model folder"):
            serve(ServeConfig(tmp_path / "no model", port=port))


def test_ctrl_c_ends_the_command_cleanly(tiny_student: Path, tmp_path: Path) -> None:
    port = free_port()
    arguments = ["serve", "--model", str(tiny_student), "--port", str(port)]
    with subprocess.Popen(
        [sys.executable, "-m", "mlx_distill", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ,
    ) as process:
        assert process.stderr
        line = next(line for line in process.stderr if "Ctrl-C stops" in line)
        assert f"tiny-qwen2 at http://127.0.0.1:{port}/v1" in line
        answer = ServerClient(port).ask("tiny-qwen2", stream=True, max_tokens=1900)
        next(iter(answer))
        process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="stopping"):
            list(answer)
        assert process.stderr.read() == "Stopped.\n"
        assert process.wait(60) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
