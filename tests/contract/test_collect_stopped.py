"""collect stopped by Ctrl-C or a kill, and the whole command as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlx_distill.errors import Interrupted
from mlx_distill.events import Event, Warning
from mlx_distill.teachers import live
from tests.conftest import Finished
from tests.support.batching import press_ctrl_c
from tests.support.collecting import KEY, Collect, Records, RunCli, journal_of, usage_of
from tests.support.messages_server import Call, MessagesServer, Reply, answer, error, message, text

MAX_WAIT_SECONDS = 300
"""A run that has not ended by then hangs."""


@pytest.fixture
def own_handlers() -> Iterator[Callable[[], bool]]:
    """Signal handlers as a program around the library may have; tells whether they are still in place."""

    def on_term(_which: int, _frame: object) -> None:
        """Never called: the run catches the signal itself."""

    before = signal.signal(signal.SIGTERM, on_term)
    yield lambda: signal.getsignal(signal.SIGTERM) is on_term
    signal.signal(signal.SIGTERM, before)


def ctrl_c_after_eight_answers(answer_rest: threading.Event) -> Callable[[Call], Reply]:
    """Answer eight prompts, the next four after an event, and press Ctrl-C when all four are in flight."""
    in_flight = threading.Barrier(4, press_ctrl_c)

    def script(call: Call) -> Reply:
        if int(call.prompt.split()[1]) >= 8:
            in_flight.wait(MAX_WAIT_SECONDS)
            answer_rest.wait(MAX_WAIT_SECONDS)
        return answer()

    return script


def test_ctrl_c_waits_for_paid_answers_and_saves_the_index(
    server: MessagesServer, collect: Collect, records: Records, tmp_path: Path, own_handlers: Callable[[], bool]
) -> None:
    answer_rest = threading.Event()
    server.script = ctrl_c_after_eight_answers(answer_rest)
    said: list[str] = []

    def report(event: Event) -> None:
        if isinstance(event, Warning):
            said.append(event.text)
            answer_rest.set()

    with pytest.raises(Interrupted) as raised:
        collect(n=40, concurrency=4, report=report)
    assert own_handlers()
    assert raised.value.exit_code == 130
    assert len(records()) == len(server.calls) == 12
    assert "12 of 40 answers are saved" in raised.value.message
    assert "for the 28 missing" in raised.value.next_step
    assert len(json.loads((tmp_path / "out" / "collect.json").read_text())["answers"]) == 40
    assert usage_of(tmp_path / "out").total.n_unknown == 0
    assert "4 answers in flight" in said[0] and "Ctrl-C again" in said[0]


@pytest.mark.parametrize("how", ["paid", "free", "in a notebook"])
def test_second_ctrl_c_stops_at_once(
    server: MessagesServer,
    collect: Collect,
    records: Records,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """A teacher that costs nothing stops at the first. In a notebook an event loop is running already."""
    monkeypatch.setattr(live, "DRAIN_SECONDS", 1e6)
    never = threading.Event()
    server.script = ctrl_c_after_eight_answers(never)

    def press_again(event: Event) -> None:
        if isinstance(event, Warning):
            press_ctrl_c()

    async def notebook() -> None:
        collect(n=40, concurrency=4, track_costs=how != "free", report=press_again)

    loop = asyncio.new_event_loop()  # asyncio.run would turn Ctrl-C into a cancellation of its own
    with pytest.raises(Interrupted):
        if how == "in a notebook":
            loop.run_until_complete(notebook())
        else:
            collect(n=40, concurrency=4, track_costs=how != "free", report=press_again)
    loop.close()
    never.set()
    assert len(records()) == 8
    assert usage_of(tmp_path / "out").total.n_unknown == (0 if how == "free" else 4)


class Process:
    """A real `mlx-distill collect` of 40 prompts in its own project folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data").mkdir(parents=True)
        lines = [json.dumps({"id": f"p{number}", "prompt": f"Prompt {number}"}) for number in range(40)]
        (folder / "data" / "prompts.jsonl").write_text("\n".join(lines))
        (folder / "distill.toml").write_text('name = "demo"\n[collect]\nconcurrency = 4\nfirst_wait_seconds = 0.05\n')

    @property
    def saved(self) -> list[str]:
        journal = self.folder / "data" / "demo" / "teacher_data.jsonl"
        if not journal.exists():
            return []
        return [record["prompt_id"].replace("p", "Prompt ") for record in journal_of(journal.parent)]

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mlx_distill", "collect"]
        return subprocess.Popen(
            command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
        )

    def stop_midway(self, which: signal.Signals) -> Finished:
        """Start it, wait until a quarter is saved, send it a signal."""
        running = self.start()
        deadline = time.monotonic() + 30
        while len(self.saved) < 10 and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        running.send_signal(which)
        out, err = running.communicate(timeout=30)
        return Finished(running.returncode, out, err)

    def finish(self) -> Finished:
        running = self.start()
        out, err = running.communicate(timeout=60)
        return Finished(running.returncode, out, err)


@pytest.mark.parametrize("which", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_kill_loses_and_repeats_no_answer(server: MessagesServer, tmp_path: Path, which: signal.Signals) -> None:
    server.script = lambda call: Reply(body=message(text(f"Answer to {call.prompt}")), after_seconds=0.06)
    process = Process(tmp_path / "project")
    stopped = process.stop_midway(which)
    if which == signal.SIGKILL:
        assert stopped.code == -signal.SIGKILL
    else:
        assert stopped.code == 128 + which
        assert "answers are saved" in stopped.err
    saved, asked_before = process.saved, server.prompts
    assert 10 <= len(saved) < 40

    finished = process.finish()
    assert finished.code == 0, finished.err
    assert "40 of 40 answered" in finished.out
    asked_after = server.prompts[len(asked_before) :]
    assert not set(saved) & set(asked_after), "an answer on the disk was asked for again"
    repeated = set(asked_before) & set(asked_after)
    assert len(repeated) <= 4, "more was repeated than was in flight"
    assert process.saved[: len(saved)] == saved
    assert sorted(process.saved) == sorted(f"Prompt {number}" for number in range(40))


def test_the_key_appears_in_no_output_and_no_file(server: MessagesServer, cli: RunCli, tmp_path: Path) -> None:
    server.script = lambda call: (
        error(401, "authentication_error", f"bad key {KEY}") if len(server.calls) > 5 else answer()
    )
    process = Process(tmp_path / "project")
    finished = cli("collect", cwd=process.folder)
    assert finished.code == 1
    assert "refused the API key" in finished.err
    assert "Traceback" not in finished.err
    written = [file.read_text() for file in process.folder.rglob("*") if file.is_file()]
    assert len(process.saved) == 5
    assert not [content for content in (finished.out, finished.err, *written) if KEY in content or KEY[7:20] in content]


def test_the_command_ends_as_the_demo_does(server: MessagesServer, cli: RunCli, tmp_path: Path) -> None:
    server.script = lambda call: answer(stop_reason="max_tokens" if call.prompt == "Prompt 7" else "end_turn")
    process = Process(tmp_path / "project")
    printed = cli("collect", cwd=process.folder)
    assert printed.code == 0
    for words in ("40 of 40 answered", "end_turn 39, max_tokens 1", "0.04 USD", "claude-sonnet-4-6", "data/demo"):
        assert words in printed.out
    again = cli("collect", "--json", cwd=process.folder)
    result = json.loads(again.out)
    assert (result["n_answered"], result["n_new"], result["cost_usd"]) == (40, 0, 0)
    assert result["total_cost_usd"] == pytest.approx(0.042)
