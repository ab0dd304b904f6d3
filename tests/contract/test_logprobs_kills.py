"""`logprobs` that is killed or stopped: whole shards stay, and the same command ends with the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_distill.config import to_plain
from mlx_distill.logprobs import LogprobsConfig
from mlx_distill.logprobs.run import run
from mlx_distill.models.signal import TeacherSignal
from tests.conftest import Finished
from tests.support.rows import make_rows
from tests.support.tiny import make_tiny_qwen2

KILLS, SHARD_TOKENS = 20, 100

KILLER = """
import json, os, random, signal, sys, time
from mlx_distill import device
device.configure_process()
from mlx_distill.config import parse
from mlx_distill.logprobs import LogprobsConfig
from mlx_distill.logprobs.run import run

config, kills, shard_tokens = parse(LogprobsConfig, json.loads(sys.argv[1]), "test"), int(sys.argv[2]), int(sys.argv[3])
draw, killed = random.Random(3), 0

def shards():
    return set(config.out.glob("[!.]*.safetensors"))

while True:
    before = shards()
    child = os.fork()  # nothing was computed yet, so there are no threads that a fork would lose
    if child == 0:
        run(config, shard_tokens=shard_tokens)
        os._exit(0)
    until = time.monotonic() + 60
    if killed < kills:
        if killed % 4:  # every fourth is killed while it loads
            while not shards() - before and time.monotonic() < until:
                time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        sys.exit(f"killed {killed} times, then ended with {status}" if killed < kills or status else 0)
    killed += 1
    assert before <= shards(), "a whole shard is gone"
"""


@pytest.fixture
def config(tiny_student: Path, tmp_path: Path) -> LogprobsConfig:
    teacher = make_tiny_qwen2(tmp_path / "teacher", seed=8)
    rows = make_rows(tmp_path / "rows", train=240)
    return LogprobsConfig(teacher=f"mlx:{teacher}", model=tiny_student, data=rows, top_k=8)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def in_new_process(config: LogprobsConfig, *arguments: int) -> None:
    words = [json.dumps(to_plain(config)), *map(str, arguments)]
    subprocess.run([sys.executable, "-c", KILLER, *words], check=True, timeout=300)


def test_twenty_kills_do_not_change_a_byte(config: LogprobsConfig, tmp_path: Path) -> None:
    in_new_process(config, KILLS, SHARD_TOKENS)
    whole = config.replace(data=make_rows(tmp_path / "whole", train=240))
    in_new_process(whole, 0, SHARD_TOKENS)
    assert len(TeacherSignal.open(whole.out).manifest.shards) > 2 * KILLS
    assert contents(config.out) == contents(whole.out)


def test_a_kill_while_rows_change_keeps_the_old_result(config: LogprobsConfig) -> None:
    run(config, shard_tokens=SHARD_TOKENS)
    file = config.data / "train.jsonl"
    file.write_text(file.read_text().replace("return", "give"))
    old = TeacherSignal.open(config.out).manifest
    values = json.dumps(to_plain(config))
    child = "import json, os, signal, sys; KILL = signal.SIGKILL\n" + KILLER.split("draw, killed")[0].split("\n", 2)[2]
    child += "from mlx_distill.events import Progress\n"
    child += "def stop(event):\n    if isinstance(event, Progress) and event.done > 1500: os.kill(os.getpid(), KILL)\n"
    child += "run(config, stop, shard_tokens=shard_tokens)\n"
    words = [sys.executable, "-c", child, values, "0", str(SHARD_TOKENS)]
    assert subprocess.run(words, timeout=300, check=False).returncode == -signal.SIGKILL
    assert TeacherSignal.open(config.out).manifest == old
    result = run(config, shard_tokens=SHARD_TOKENS)
    assert 0 < result.n_scored < result.n_tokens
    named = {shard.file for shard in TeacherSignal.open(config.out).manifest.shards}
    assert {*named, "manifest.json"} == set(contents(config.out))


def test_ctrl_c_says_how_to_continue(config: LogprobsConfig, cli: Callable[..., Finished], tmp_path: Path) -> None:
    values = {name: value for name, value in to_plain(config).items() if name != "teacher_context"}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    command = [sys.executable, "-m", "mlx_distill", "logprobs", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("Loading the teacher"):
                process.send_signal(signal.SIGINT)
    text = "".join(lines)
    assert process.returncode == 130, text
    assert "Stopped: after 0 of 1 shard" in text and "run the same command again" in text
    assert "Traceback" not in text
    assert not list(config.out.glob("*.safetensors")) and not list(config.data.glob(".*"))
    finished = cli("logprobs", *options, "--json")
    assert finished.code == 0, finished.err
    assert json.loads(finished.out)["n_scored"] == json.loads(finished.out)["n_tokens"] > 0
