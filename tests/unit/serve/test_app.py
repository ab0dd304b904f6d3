"""The HTTP part of the server. The tests take the place of the model."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import openai
import pytest

from mlx_distill.serve.app import Job, Jobs, http_server
from mlx_distill.serve.protocol import Finish, RequestError
from mlx_distill.serve.run import listen
from tests.support.serving import ServerClient

MAX_BODY = 100_000
BODY = b'{"model": "base", "messages": [{"role": "user", "content": "Hi"}]}'
HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()


@pytest.fixture
def jobs() -> Jobs:
    return Jobs(2)


@pytest.fixture
def client(jobs: Jobs) -> Iterator[ServerClient]:
    with running_server(jobs) as client:
        yield client


@contextmanager
def running_server(jobs: Jobs, receive_seconds: float = 60.0) -> Iterator[ServerClient]:
    with listen(0) as listener:
        server = http_server(["base"], jobs, MAX_BODY, receive_seconds)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield ServerClient(listener.getsockname()[1])
        server.should_exit = True
        thread.join()


def take(jobs: Jobs) -> Job:
    job = jobs.get(timeout=60)
    assert job is not None
    return job


@pytest.mark.parametrize("streaming", [True, False])
def test_an_answer_carries_text_reason_and_usage(client: ServerClient, jobs: Jobs, streaming: bool) -> None:
    with ThreadPoolExecutor(1) as pool:
        options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if streaming else {}
        answer = pool.submit(lambda: client.ask("base", **options))
        job = take(jobs)
        for item in ("Hello", " wörld 🙂", Finish("length", 10, 4, 2)):
            job.put(item)
        result = answer.result()
    if streaming:
        *chunks, last = list(result)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello wörld 🙂"
        assert chunks[-1].choices[0].finish_reason == "length"
        assert len({chunk.id for chunk in [*chunks, last]}) == 1
    else:
        last = result
        assert result.choices[0].message.content == "Hello wörld 🙂"
        assert result.choices[0].finish_reason == "length"
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (10, 2, 12)
    assert last.usage.prompt_tokens_details.cached_tokens == 4


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_cancels_its_job(client: ServerClient, jobs: Jobs, streaming: bool) -> None:
    body = BODY[:-1] + (b', "stream": true }' if streaming else b', "stream": false}')
    head = HEAD.replace(str(len(BODY)).encode(), str(len(body)).encode())
    connection = client.send(head + body)
    job = take(jobs)
    if streaming:
        job.put("Hello")
        assert connection.recv(10)
    connection.close()
    assert job.cancelled.wait(60)
    job.put(Finish("stop", 1, 0, 1))


def test_a_full_queue_gives_503(client: ServerClient, jobs: Jobs) -> None:
    for _ in range(2):
        jobs.put(None)
    with pytest.raises(openai.InternalServerError, match="Too many requests") as caught:
        client.ask("base")
    assert caught.value.status_code == 503


def test_an_error_before_the_first_text_sets_the_status(client: ServerClient, jobs: Jobs) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: client.post_json(stream=True))
        take(jobs).put(RequestError("The prompt is too long.", "messages", code="context_length_exceeded"))
        status, data = answer.result()
    assert status == 400
    assert data["error"] == {
        "message": "The prompt is too long.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }


def test_an_error_after_the_first_text_ends_the_stream(client: ServerClient, jobs: Jobs) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: list(client.ask("base", stream=True)))
        job = take(jobs)
        job.put("Hello")
        job.put(RequestError("The server is stopping.", status=503))
        with pytest.raises(openai.APIError, match="stopping"):
            answer.result()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example:80"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Origin": "https://evil.example", "Content-Type": "text/plain"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost.evil.example"}, 403),
        ({"Content-Length": "²"}, 400),
        ({"Content-Length": "9" * 5000}, 400),
        ({"Content-Length": str(10 * MAX_BODY)}, 413),
        ({"Content-Length": "5, 6"}, 400),
        ({"X-Odd": "a\r\n b: c"}, 404),
    ],
    ids=lambda value: str(value)[:40],
)
def test_foreign_and_odd_headers_are_refused(
    client: ServerClient, jobs: Jobs, headers: dict[str, str], status: int
) -> None:
    assert client.post(BODY.replace(b"base", b"none"), **headers)[0] == status
    assert jobs.empty()


def test_a_long_body_without_a_length_is_refused(client: ServerClient, jobs: Jobs) -> None:
    head = HEAD.split(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
    with client.send(head + b"%x\r\n" % (MAX_BODY + 1) + b"x" * (MAX_BODY + 1)) as connection:
        assert connection.recv(12) == b"HTTP/1.1 413"
    assert jobs.empty()


@pytest.mark.parametrize(
    ("framing", "statuses"),
    [
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 47\r\nConnection: close\r\n", [b"200"]),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 47\r\nContent-Length: 5\r\n", [b"400"]),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n", [b"400"]),
    ],
)
def test_a_body_is_not_read_as_the_next_request(
    client: ServerClient, jobs: Jobs, framing: bytes, statuses: list[bytes]
) -> None:
    with client.send(framing + b"\r\nGET /v1/models/base HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
        response = b"".join(iter(lambda: connection.recv(65536), b""))
    assert re.findall(rb"HTTP/1\.1 (\d+)", response) == statuses
    assert jobs.empty()


def test_every_origin_counts(client: ServerClient) -> None:
    assert client.post(b"{", Origin="http://localhost\r\nOrigin: https://evil.example")[0] == 403


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "https://LOCALHOST:1"])
def test_pages_of_this_machine_are_answered(client: ServerClient, origin: str) -> None:
    assert client.post(b"{", Origin=origin)[0] == 400


def test_unknown_paths_and_methods_get_json_errors(client: ServerClient) -> None:
    for path, status in (("/v1/embeddings", 404), ("/v1/models", 405), ("/base", 404)):
        got, data = client.post(b"{}", path=path)
        assert got == status and path in data["error"]["message"]


def test_dropped_uploads_leave_the_server_quiet(
    client: ServerClient, jobs: Jobs, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(50):
        client.send(HEAD + BODY[:10]).close()
        client.send(b"GET / HT").close()
    assert client.post_json(model="none")[0] == 404
    assert capfd.readouterr() == ("", "")
    assert jobs.empty()


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"[" * 50_000, b"\xff", BODY.replace(b"Hi", b"\\ud83d"), b"1e999", b"\0"]
)
def test_broken_bodies_get_400(client: ServerClient, body: bytes) -> None:
    status, data = client.post(body)
    assert status == 400 and data["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("sent", [b"", HEAD[:40], HEAD, HEAD + BODY[:-1]])
def test_a_client_that_does_not_send_its_request_is_disconnected(jobs: Jobs, sent: bytes) -> None:
    with running_server(jobs, receive_seconds=0.2) as client, client.send(sent) as connection:
        with suppress(ConnectionError):
            assert connection.recv(1) == b""
        assert jobs.empty()


def test_a_client_may_wait_long_for_its_answer(jobs: Jobs) -> None:
    with running_server(jobs, receive_seconds=0.2) as client, client.send(HEAD + BODY) as connection:
        job = take(jobs)
        assert not job.cancelled.wait(0.6)
        job.put(Finish("stop", 1, 0, 0))
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
