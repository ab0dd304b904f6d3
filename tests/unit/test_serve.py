"""The server, asked by the official client and by hand: both names, streaming, faults, and its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import pytest

from mlx_distill.errors import MachineError, MissingError
from mlx_distill.serve.api import until
from mlx_distill.serve.config import ServeConfig
from mlx_distill.serve.run import run as serve
from tests.support.adapters import make_adapter
from tests.support.tiny import make_tiny_qwen2

SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class Running:
    """A server that is up, and what each of its models answers to one prompt when asked without it."""

    port: int
    expected: dict[str, str]
    config: ServeConfig

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="unused", max_retries=0)

    def post(self, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, dict[str, Any]]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("serve")
    base = make_tiny_qwen2(folder / "base", dtype="float32")
    adapter = make_adapter(base, folder / "adapter")
    config = ServeConfig(base, adapter, system=SYSTEM, max_tokens=24, port=0)
    ready = threading.Event()
    found: dict[str, Any] = {}

    def work() -> None:  # everything that touches mlx stays in this thread, as it does in the command
        from mlx_distill.models.adapter import attach
        from mlx_distill.models.generate import stream
        from mlx_distill.models.load import load_student
        from mlx_distill.models.tokenize import render_prompt
        from mlx_distill.records import build_messages
        from mlx_distill.serve.http_server import Listener
        from mlx_distill.serve.run import Server

        student = load_student(base)
        prompt = render_prompt(student.tokenizer, build_messages("Write a function.", SYSTEM))
        answers = {"base": "".join(piece.text for piece in stream(student, prompt, max_tokens=24))}
        put_on = attach(student, adapter)
        answers["distilled"] = "".join(piece.text for piece in stream(student, prompt, max_tokens=24))
        server = Server(student, put_on, config, Listener(config.port))
        found.update(server=server, answers=answers, port=int(server.url.split(":")[2].split("/")[0]))
        ready.set()
        server.serve()

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(60)
    yield Running(found["port"], found["answers"], config)
    found["server"].stop()
    thread.join(10)
    assert not thread.is_alive()


def ask(running: Running, model: str, **settings: Any) -> Any:
    messages = [{"role": "user", "content": "Write a function."}]
    return running.client().chat.completions.create(model=model, messages=messages, **settings)  # type: ignore[call-overload]


def test_it_lists_both_models(running: Running) -> None:
    assert [model.id for model in running.client().models.list()] == ["distilled", "base"]
    assert running.client().models.retrieve("base").id == "base"


def test_each_name_answers_as_the_model_itself_does(running: Running) -> None:
    assert running.expected["base"] != running.expected["distilled"]
    for model in ("distilled", "base", "distilled"):
        answer = ask(running, model)
        assert answer.choices[0].message.content == running.expected[model]
        assert answer.model == model
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed_pieces_make_the_same_answer(running: Running) -> None:
    chunks = list(ask(running, "distilled", stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == running.expected["distilled"]
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].usage.completion_tokens > 0


def test_requests_for_both_names_at_once_are_all_answered_right(running: Running) -> None:
    def one(number: int) -> bool:
        model = ("base", "distilled")[number % 2]
        if number % 3:
            return bool(ask(running, model).choices[0].message.content == running.expected[model])
        chunks = ask(running, model, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == running.expected[model]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(16)))


def test_limits_stops_and_content_parts(running: Running) -> None:
    cut = ask(running, "base", max_tokens=3)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 3
    text = running.expected["base"]
    stop = text[4:7]
    assert ask(running, "base", stop=[stop]).choices[0].message.content == text[: text.index(stop)]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Write a "}, {"type": "text", "text": "function."}]}]
    answer = running.client().chat.completions.create(model="base", messages=parts)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == text


def test_a_client_that_goes_away_does_not_hold_the_others_up(running: Running) -> None:
    stream = ask(running, "base", stream=True, max_tokens=1500)
    next(iter(stream))
    stream.close()
    assert ask(running, "base").choices[0].message.content == running.expected["base"]


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"model": "gpt-4"}, 404, "There is no model 'gpt-4'; this server has distilled, base."),
        ({"model": None}, 400, '"model" is missing'),
        ({"messages": []}, 400, '"messages" must be a non-empty list'),
        ({"messages": "Hi"}, 400, '"messages" must be a non-empty list'),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "role 'tool' is not one of"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, 400, "is not one of"),
        ({"messages": ["x"]}, 400, "role None is not one of"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "must be text"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "must be text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "The last message must be the user's"),
        ({"messages": [{"role": "user", "content": "<|im_end|>"}]}, 400, "control token"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, 400, "the context holds 2048"),
        ({"max_tokens": 0}, 400, "max_tokens must be a whole number of at least 1, not 0"),
        ({"max_tokens": "many"}, 400, "max_tokens must be a whole number"),
        ({"max_tokens": True}, 400, "max_tokens must be a whole number"),
        ({"temperature": -1}, 400, "temperature must be a number of at least 0"),
        ({"n": 2}, 400, "n is not supported"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported"),
        ({"top_p": 1.5}, 400, "top_p must be a number of at least 0 and at most 1"),
        ({"stop": [""]}, 400, "stop must be"),
    ],
)
def test_a_bad_request_gets_one_clear_sentence(
    running: Running, change: dict[str, Any], status: int, says: str
) -> None:
    body = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], **change}
    got, answer = running.post(json.dumps(body).encode())
    assert got == status
    assert says in answer["error"]["message"]


def test_broken_bodies_paths_and_hosts_are_refused(running: Running) -> None:
    assert running.post(b"{")[0] == 400
    assert running.post(b"[1]")[0] == 400
    assert running.post(b"[" * 100_000)[0] == 400
    assert running.post(b"{}", path="/v1/embeddings")[0] == 404
    assert running.post(b"{}", Host="evil.example:80")[0] == 403
    with pytest.raises(openai.NotFoundError):
        running.client().models.retrieve("other")


def test_top_p_narrows_what_is_drawn_and_empty_lists_of_tools_are_fine(running: Running) -> None:
    hot = {"temperature": 2.0, "seed": 3}
    assert ask(running, "base", **hot).choices[0].message.content != running.expected["base"]
    for narrow in (0, 1e-9):
        answer = ask(running, "base", top_p=narrow, tools=[], **hot)
        assert answer.choices[0].message.content == running.expected["base"], "the likeliest token alone is left"


def test_a_port_that_is_taken_is_named_before_the_model_is_looked_for(running: Running, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=f"Port {running.port} .*in use"):
        serve(ServeConfig(tmp_path / "no model", port=running.port))


def test_a_port_is_free_again_where_loading_failed(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for _ in range(2):
        with pytest.raises(MissingError, match="no model folder"):
            serve(ServeConfig(tmp_path / "no model", port=port))


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_text_ends_before_the_first_stop_text_however_it_is_cut(size: int) -> None:
    text = "one two END three STOP four"
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert "".join(until(["STOP", "END"], pieces)) == "one two "
    assert "".join(until(["ENDLESS"], pieces)) == text
    assert "".join(until([], pieces)) == text


def test_ctrl_c_ends_the_command_cleanly(tiny_student: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["serve", "--model", str(tiny_student), "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_distill", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ,
    )
    with process:
        assert process.stderr
        line = next(line for line in process.stderr if "Ctrl-C stops" in line)
        assert f"tiny-qwen2 at http://127.0.0.1:{port}/v1" in line
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "Stopped.\n"
        assert process.wait(20) == 0
