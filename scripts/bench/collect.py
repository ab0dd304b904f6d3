#!/usr/bin/env python3
"""Measure how fast answers are collected, and the memory that many prompts need, against a local server.

    python scripts/bench/collect.py [--seconds 5] [--prompts 104] [--counts 1000 10000 100000] [--json]

Speed: the server takes --seconds for each request and reports, as Anthropic does, a limit of 4,000 requests a minute,
so that the first answer opens the full width; --silent omits the report. The serial time is not measured: it is at
least the number of prompts times --seconds. Memory: the server answers at once; a new process collects each count, and
its largest resident size is reported. Bytes a prompt are the difference to one prompt.
Exits with 1 if collecting is less than 30 times as fast as the serial time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

TARGET = 30.0
ANSWER = "One line first. Then a second one, which says why, as an answer of some length does. " * 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds for an answer  [default: 5]")
    parser.add_argument("--prompts", type=int, default=104, help="prompts of the speed run  [default: 104]")
    parser.add_argument("--concurrency", type=int, default=104, help="maximum requests at once  [default: 104]")
    parser.add_argument("--counts", type=int, nargs="*", default=[1000, 10_000, 100_000], help="prompts, for memory")
    parser.add_argument("--silent", action="store_true", help="the server does not report its limits")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--collect", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(**options.serve))
        return 0
    if options.collect is not None:
        print(json.dumps(collect(**options.collect)))
        return 0
    result = measure(options)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print_result(result)
    return 0 if result["speed"]["times_as_fast"] >= TARGET else 1


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with Server(options.seconds, silent=options.silent) as server:
        together = server.collect(options.prompts, concurrency=options.concurrency)
    one_after_another = options.prompts * options.seconds
    speed = {
        "n_prompts": options.prompts,
        "server_seconds": options.seconds,
        "server_says_its_limits": not options.silent,
        "serial_seconds": round(one_after_another, 2),
        "seconds": round(together["seconds"], 2),
        "requests_per_second": round(options.prompts / together["seconds"], 2),
        "times_as_fast": round(one_after_another / together["seconds"], 1),
        "target": TARGET,
    }
    memory: list[dict[str, Any]] = []
    with Server(0.0, silent=options.silent) as server:
        base = server.collect(1, concurrency=64)["peak_bytes"]
        for count in options.counts:
            row = server.collect(count, concurrency=64)
            memory.append(
                {
                    "n_prompts": count,
                    "peak_bytes": row["peak_bytes"],
                    "bytes_per_prompt": round((row["peak_bytes"] - base) / count),
                    "requests_per_second": round(count / row["seconds"], 1),
                }
            )
    return {"speed": speed, "one_prompt_peak_bytes": base, "memory": memory}


def print_result(result: dict[str, Any]) -> None:
    speed = result["speed"]
    print(
        f"{speed['n_prompts']} prompts, {speed['server_seconds']:g} s each: {speed['seconds']} s "
        f"({speed['requests_per_second']} requests/s); one after another at least {speed['serial_seconds']:g} s: "
        f"{speed['times_as_fast']} times as fast, {TARGET:g} wanted"
    )
    print(f"memory: 1 prompt {result['one_prompt_peak_bytes'] / 1e6:.0f} MB")
    for row in result["memory"]:
        print(
            f"memory: {row['n_prompts']:,} prompts {row['peak_bytes'] / 1e6:.0f} MB, "
            f"{row['bytes_per_prompt']:,} bytes a prompt; {row['requests_per_second']} requests/s"
        )


class Server:
    """A server in another process, so that its memory and time do not count."""

    def __init__(self, seconds: float, *, silent: bool) -> None:
        self._settings = json.dumps({"seconds": seconds, "silent": silent})

    def __enter__(self) -> Server:
        command = [sys.executable, __file__, "--serve", self._settings]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._url = self._process.stdout.readline().strip()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def collect(self, n_prompts: int, concurrency: int) -> dict[str, float]:
        """Collect in a new process; return its seconds and its largest resident size."""
        job = json.dumps({"n_prompts": n_prompts, "concurrency": concurrency})
        environment = {**os.environ, "ANTHROPIC_BASE_URL": self._url, "ANTHROPIC_API_KEY": "none"}
        command = [sys.executable, __file__, "--collect", job]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        figures: dict[str, float] = json.loads(done.stdout)
        return figures


def collect(n_prompts: int, concurrency: int) -> dict[str, float]:
    from mlx_distill.collect.config import CollectConfig
    from mlx_distill.collect.run import run

    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.txt"
        with prompts.open("w", encoding="utf-8") as file:
            file.writelines(
                f"Prompt {number}: what is a queue, and when is a stack better?\n" for number in range(n_prompts)
            )
        config = CollectConfig(
            out=Path(folder) / "out", teacher="anthropic:claude-haiku-4-5", prompts=prompts, concurrency=concurrency
        )
        began = time.perf_counter()
        result = run(config)
        seconds = time.perf_counter() - began
    if result.n_answered != n_prompts:
        raise SystemExit(f"{result.n_answered} of {n_prompts} were answered")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_bytes": peak if sys.platform == "darwin" else peak * 1024}


async def serve(seconds: float, silent: bool) -> None:
    """Answer every POST after `seconds`, all at once; report the limits unless `silent`."""
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": [{"type": "text", "text": ANSWER}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 100, "output_tokens": 80},
    }
    body = json.dumps(message).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"

    def reply() -> bytes:
        reset = (datetime.now(UTC) + timedelta(seconds=60)).isoformat(timespec="seconds")
        limit = {"limit": "4000", "remaining": "4000", "reset": reset}
        said = {} if silent else {f"anthropic-ratelimit-requests-{name}": value for name, value in limit.items()}
        return "".join([head, *(f"{name}: {value}\r\n" for name, value in said.items()), "\r\n"]).encode() + body

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                await reader.readexactly(int(lengths[0].split(b":")[1]))
                await asyncio.sleep(seconds)
                writer.write(reply())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=512)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
