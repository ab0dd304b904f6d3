"""collect through the real OpenAI SDK: a real `mlx_lm.server`, and a server that misbehaves."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.errors import InputError, MissingError, TeacherError
from mlx_distill.events import Event
from mlx_distill.models.context import TEACHER_SYSTEM
from mlx_distill.sanitize import without_thinking
from mlx_distill.teachers import open_teacher
from mlx_distill.teachers.openai import is_loopback
from tests.support.collecting import KEY, Collect, Records, cautions, scripted
from tests.support.completions import PATH, completion, failure
from tests.support.hostile_server import HOSTILE, hostile_reply
from tests.support.messages_server import DROPPED, MessagesServer, Reply


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MessagesServer]:
    with MessagesServer(lambda call: completion(f"Answer to {call.prompt}"), path=PATH).running() as running:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{running.url}/v1")
        yield running


@pytest.fixture
def teacher() -> str:
    return "openai:tiny"


# A real server


@pytest.fixture(scope="module")
def mlx_server(tiny_student: Path) -> Iterator[str]:
    """The address of an `mlx_lm.server` with the tiny student."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(tiny_student), "--port", str(port)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}/v1"
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{url}/models").close()
                break
            except OSError:
                assert running.poll() is None and time.monotonic() < deadline, "mlx_lm.server did not start"
                time.sleep(0.1)
        yield url
    finally:
        running.terminate()
        running.wait()


def test_mlx_lm_server_answers_without_a_key_for_free(
    mlx_server: str, tiny_student: Path, collect: Collect, events: list[Event], records: Records, tmp_path: Path
) -> None:
    result = collect(n=4, teacher=f"openai:{tiny_student}@{mlx_server}", max_tokens=12)
    assert (result.n_answered, result.n_new, result.cost_usd) == (4, 4, 0)
    assert result.teacher.endswith(mlx_server)
    for record in records():
        assert record["teacher"] == f"openai:{tiny_student}"
        assert record["stop_reason"] in ("max_tokens", "end_turn")
        assert record["answer"]
        used = record["usage"]
        assert used["input_tokens"] + used["cache_read_tokens"] > 20
        assert 0 < used["output_tokens"] <= record["max_tokens"] <= 24
        assert record["cost_usd"] == 0
    assert not [line for line in cautions(events) if "price" in line]
    assert not (tmp_path / "out" / "ledger.jsonl").exists()
    assert collect(n=4, teacher=f"openai:{tiny_student}@{mlx_server}", max_tokens=12).n_new == 0


# What is asked, and what an answer becomes


def test_request_to_a_local_server(server: MessagesServer, collect: Collect, records: Records) -> None:
    collect()
    [call] = server.calls
    assert call.body == {
        "model": "tiny",
        "max_tokens": 4096,
        "messages": [{"role": "system", "content": TEACHER_SYSTEM}, {"role": "user", "content": "Prompt 0"}],
    }
    assert call.headers["authorization"] == "Bearer none"
    [record] = records()
    assert (record["answer"], record["stop_reason"], record["model"]) == ("Answer to Prompt 0", "end_turn", "tiny")


def test_address_is_not_part_of_the_request(
    server: MessagesServer, collect: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert collect(teacher=f"openai:tiny@{server.url}/v1").n_new == 0
    assert collect(teacher=f"openai:other@{server.url}/v1").n_new == 1
    assert [call.body["model"] for call in server.calls] == ["tiny", "other"]


@pytest.mark.parametrize(
    ("finish", "becomes"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("content_filter", "refusal"),
        ("tool_calls", "tool_use"),
        ("odd", "odd"),
    ],
)
def test_finish_reasons_are_journalled_in_one_vocabulary(
    server: MessagesServer, collect: Collect, records: Records, finish: str, becomes: str
) -> None:
    server.script = scripted(completion("Text", finish=finish))
    assert collect().stop_reasons == {becomes: 1}
    assert records()[0]["answer"] == "Text"


def test_a_refusal_is_no_answer(server: MessagesServer, collect: Collect, records: Records) -> None:
    server.script = scripted(completion(None, refusal="I cannot help with that."))
    collect()
    [record] = records()
    assert (record["answer"], record["stop_reason"], record["detail"]) == ("", "refusal", "I cannot help with that.")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>\nHm.\n</think>\n\nA queue.", "A queue."),
        ("Hm.\n</think>\n\nA queue.", "A queue."),
        ("<think>Hm, and then", ""),
        ("A queue.", "A queue."),
        ("Models write `<think>` and `</think>` around it.", "Models write `<think>` and `</think>` around it."),
    ],
)
def test_thoughts_left_in_the_text_are_no_part_of_the_answer(text: str, left: str) -> None:
    assert without_thinking(text) == left


def test_a_server_that_counts_nothing_is_no_error(server: MessagesServer, collect: Collect, records: Records) -> None:
    bare = completion("Text")
    server.script = scripted(Reply(body={name: bare.body[name] for name in ("id", "object", "choices")}))
    collect()
    [record] = records()
    assert (record["answer"], record["model"], record["usage"]["output_tokens"]) == ("Text", "tiny", 0)


def test_remote_server_needs_a_price(collect: Collect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://192.0.2.1:8000/v1")
    with pytest.raises(InputError, match="No price is known for tiny"):
        collect()


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://localhost:11434/v1", True),
        ("http://127.0.0.1:1234/v1", True),
        ("http://[::1]:8080/v1", True),
        ("http://192.168.1.20:8000/v1", False),
        ("https://localhost.example.com/v1", False),
        ("https://api.openai.com/v1", False),
    ],
)
def test_only_this_machine_is_known_to_charge_nothing(url: str, here: bool) -> None:
    assert is_loopback(url) == here


# What is waited out, what skips one prompt, what stops the run


def test_trouble_that_passes_is_waited_out_and_said(
    server: MessagesServer, collect: Collect, events: list[Event]
) -> None:
    server.script = scripted(Reply(503, {"error": "loading model"}), DROPPED, completion("At last."))
    assert collect().n_answered == 1
    assert len(server.calls) == 3, "an attempt of the SDK's own"
    first, second = cautions(events)
    assert "overloaded (503): loading model" in first
    assert "no connection" in second


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (failure(400, "This model's maximum context length is 8192 tokens", "context_length_exceeded"), "too long"),
        (failure(400, "the request exceeds the available context size"), "too long"),
        (failure(413, "Too large"), "too long"),
        (failure(400, "Blocked by policy", "content_filter"), "blocked"),
    ],
)
def test_unanswerable_prompt_is_skipped_with_its_reason(
    server: MessagesServer, collect: Collect, reply: Reply, said: str
) -> None:
    server.script = lambda call: reply if call.prompt == "Prompt 1" else completion()
    result = collect(n=3)
    assert result.n_answered == 2
    [skipped] = result.failed
    assert said in skipped.reason


STOPS = [
    (
        failure(401, f"Incorrect API key provided: {KEY}"),
        "refused the API key (401): Incorrect API key provided: [key]",
    ),
    (failure(402, "Payment required"), "no balance"),
    (
        failure(429, "You exceeded your current quota", "insufficient_quota"),
        "no balance or has reached its limit (429)",
    ),
    (failure(403, "Not allowed"), "may not use tiny"),
    (Reply(404, {"error": "model 'tiny' not found"}), "does not serve 'tiny' (404): model 'tiny' not found"),
    (failure(400, "max_tokens must be at least 1"), "refused the request (400): max_tokens must be at least 1"),
    (Reply(body="<html>Log in to the hotel network</html>"), "does not speak the Chat Completions API"),
    (Reply(body={"ok": True}), "does not speak the Chat Completions API"),
    (Reply(body={"choices": []}), "does not speak the Chat Completions API"),
]


@pytest.mark.parametrize(("reply", "said"), STOPS, ids=[said for _, said in STOPS])
def test_fatal_error_stops_the_run_with_one_line(
    server: MessagesServer, collect: Collect, records: Records, monkeypatch: pytest.MonkeyPatch, reply: Reply, said: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.script = lambda call: completion() if call.prompt == "Prompt 0" else reply
    collect()
    with pytest.raises(TeacherError) as raised:
        collect(n=50, concurrency=2)
    assert said in raised.value.message
    assert "\n" not in raised.value.message and raised.value.next_step
    assert KEY not in str(raised.value)
    assert KEY in server.calls[0].headers["authorization"]
    assert len(server.calls) <= 5
    assert len(records()) == 1


def test_unknown_model_lists_the_served_models(server: MessagesServer, collect: Collect) -> None:
    server.pages["/v1/models"] = Reply(body={"object": "list", "data": [{"id": "qwen2.5:7b"}, {"id": "llama3.2"}]})
    server.script = scripted(Reply(404, {"error": "model 'tiny' not found"}))
    with pytest.raises(TeacherError) as raised:
        collect()
    assert raised.value.next_step.startswith("It serves qwen2.5:7b, llama3.2:")


@pytest.mark.parametrize("data", [[{"id": 5}], [None], "names"])
def test_unknown_model_with_a_malformed_list(server: MessagesServer, collect: Collect, data: Any) -> None:
    server.pages["/v1/models"] = Reply(body={"object": "list", "data": data})
    server.script = scripted(Reply(404, {"error": "model 'tiny' not found"}))
    with pytest.raises(TeacherError, match="does not serve 'tiny'") as raised:
        collect()
    assert "OPENAI_BASE_URL" in raised.value.next_step


def test_without_a_server_and_a_key_it_says_how_to_name_one(collect: Collect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(TeacherError, match="set OPENAI_API_KEY or OPENAI_BASE_URL") as raised:
        collect(track_costs=False)
    assert "openai:MODEL@http://localhost:11434/v1" in raised.value.next_step


def test_without_the_sdk_it_names_the_command_that_installs_it(
    server: MessagesServer, collect: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingError, match="is not installed") as raised:
        collect()
    assert raised.value.next_step == f"{shlex.quote(sys.executable)} -m pip install 'mlx-distill[openai]'"
    assert not server.calls


@pytest.mark.parametrize("spec", ["openai:@http://localhost:1/v1", "openai:m@http://me:secret@localhost:1/v1"])
def test_address_without_model_or_with_password_is_refused(spec: str) -> None:
    with pytest.raises(InputError):
        open_teacher(spec)


def test_a_models_own_at_sign_is_kept() -> None:
    assert open_teacher("openai:org/model@v1").name == "openai:org/model@v1"
    assert open_teacher("openai:org/model@v1@http://localhost:1/v1").name == "openai:org/model@v1"


def test_an_address_without_http_is_refused() -> None:
    with pytest.raises(InputError, match="does not begin with http://"):
        open_teacher("openai:qwen2.5:7b@127.0.0.1:8080/v1")
    assert open_teacher("openai:model@v2").name == "openai:model@v2"


# A broken or hostile server


@pytest.mark.parametrize("trouble", list(HOSTILE))
def test_hostile_server_is_refused(server: MessagesServer, collect: Collect, trouble: str) -> None:
    with MessagesServer(lambda call: completion(), path=PATH).running() as other:
        server.script = lambda call: hostile_reply(trouble, f"{other.url}{PATH}")
        with pytest.raises(TeacherError, match=HOSTILE[trouble]):
            collect()
        assert other.calls == []
