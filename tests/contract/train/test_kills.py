"""Training that is killed, stopped, or out of disk space: nothing is lost, and the run resumes to equal weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_distill.config import to_plain
from mlx_distill.train import TrainConfig
from mlx_distill.train.run import run
from tests.support.rows import make_rows
from tests.support.signals import write_signal
from tests.support.tiny import make_tiny_qwen2
from tests.support.training import read_metrics, read_weights, same_weights

KILLS = 20

KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
from mlx_distill import device
device.configure_process()
from mlx_distill.config import parse
from mlx_distill.train import TrainConfig
from mlx_distill.train.run import run

values, kills = json.loads(sys.argv[1]), int(sys.argv[2])
folder, draw, killed = Path(values["adapter"]), random.Random(5), 0
metrics, checkpoint = folder / "metrics.jsonl", folder / "checkpoint.safetensors"

def lines():
    return metrics.read_text().count("\\n") if metrics.exists() else 0

while True:
    values |= {"resume": checkpoint.exists()}  # never force: a kill before the checkpoint leaves an unfinished start
    before = lines()
    child = os.fork()  # nothing was computed yet, so there are no threads that a fork would lose
    if child == 0:
        run(parse(TrainConfig, values, "test"))
        os._exit(0)
    until = time.monotonic() + 60
    if killed < kills:
        if killed % 4:  # every fourth is killed while it loads
            while lines() <= before and time.monotonic() < until:
                time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        sys.exit(f"killed {killed} times, then ended with {status}" if killed < kills or status else 0)
    killed += 1
"""


@pytest.fixture
def config(tiny_student: Path, tmp_path: Path) -> TrainConfig:
    rows = make_rows(tmp_path / "rows")
    adapter = tmp_path / "adapter"
    return TrainConfig(model=tiny_student, data=rows, adapter=adapter, epochs=1, batch_size=4, learning_rate=5e-3)


@pytest.mark.parametrize(("objective", "kills"), [("sft", KILLS), ("kd", 6), ("on-policy", 6)])
def test_kills_do_not_change_the_weights(config: TrainConfig, tmp_path: Path, objective: str, kills: int) -> None:
    teacher = make_tiny_qwen2(tmp_path / "teacher", seed=8)
    write_signal(config.data, teacher, top_k=16)
    own = {"teacher": f"mlx:{teacher}", "rollout_tokens": 4} if objective == "on-policy" else {}
    long = config.replace(objective=objective, epochs=60, dropout=0.1, checkpoint_every=1, **own)
    subprocess.run([sys.executable, "-c", KILLER, json.dumps(to_plain(long)), str(kills)], check=True, timeout=300)
    run(long.replace(adapter=tmp_path / "whole"))
    assert not list(long.adapter.glob(".*.safetensors.*"))
    assert same_weights(long.adapter, tmp_path / "whole")
    assert same_weights(long.adapter / "last", tmp_path / "whole" / "last")
    assert [line["step"] for line in read_metrics(long.adapter)] == list(range(181))


FULL_DISK = """
import json, resource, sys
from mlx_distill.errors import MachineError
from mlx_distill.config import parse
from mlx_distill.train import TrainConfig
from mlx_distill.train.run import run

config = parse(TrainConfig, json.loads(sys.argv[1]), "test")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    run(config)
except MachineError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("max_bytes", [100, 50_000])
def test_a_full_disk_leaves_what_was_saved(config: TrainConfig, max_bytes: int) -> None:
    """`max_bytes` is too small for the metrics of step 0, or for a checkpoint."""
    run(config)
    before = read_weights(config.adapter)
    again = to_plain(config.replace(force=True, seed=1))
    finished = subprocess.run(
        [sys.executable, "-c", FULL_DISK, json.dumps(again), str(max_bytes)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert "cannot write" in finished.stderr and "Free disk space" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert all((before[name] == value).all() for name, value in read_weights(config.adapter).items())
    assert not list(config.adapter.glob(".*"))
