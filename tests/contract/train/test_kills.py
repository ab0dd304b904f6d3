"""Killed, out of room, in the wrong place: nothing is lost, nothing is overwritten, and the message says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_distill.config import to_plain
from mlx_distill.errors import DistillError, InputError
from mlx_distill.events import Event
from mlx_distill.train import TrainConfig
from mlx_distill.train.run import run
from tests.support.rows import make_rows
from tests.support.tiny import make_tiny_qwen2
from tests.support.training import metrics_of, same_weights, weights_of

KILLS = 20

KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
from mlx_distill import device
device.prepare()
from mlx_distill.config import parse
from mlx_distill.train import TrainConfig
from mlx_distill.train.run import run
from mlx_distill.events import ignore

values, kills = json.loads(sys.argv[1]), int(sys.argv[2])
folder, draw, killed = Path(values["adapter"]), random.Random(5), 0
metrics, checkpoint = folder / "metrics.jsonl", folder / "checkpoint.safetensors"

def lines():
    return metrics.read_text().count("\\n") if metrics.exists() else 0

while True:
    values |= {"resume": checkpoint.exists()}  # never force: what a kill leaves before that is no result
    before = lines()
    child = os.fork()  # nothing was computed yet, so there are no threads that a fork would lose
    if child == 0:
        run(parse(TrainConfig, values, "test"), ignore)
        os._exit(0)
    until = time.monotonic() + 60
    if killed < kills:
        if killed % 4:  # the others are killed while they load
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


def test_a_training_killed_at_twenty_random_moments_ends_with_the_weights_of_one_that_was_not(
    config: TrainConfig, tmp_path: Path
) -> None:
    long = config.replace(epochs=60, dropout=0.1, checkpoint_every=1)
    subprocess.run([sys.executable, "-c", KILLER, json.dumps(to_plain(long)), str(KILLS)], check=True, timeout=300)
    run(replace(long, adapter=tmp_path / "whole"))
    assert same_weights(long.adapter, tmp_path / "whole")
    assert same_weights(long.adapter / "last", tmp_path / "whole" / "last")
    assert [line["step"] for line in metrics_of(long.adapter)] == list(range(181))


def test_what_an_unfinished_start_left_is_no_result_and_anything_else_is(config: TrainConfig, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill_at_the_plan(event: Event) -> None:
        raise Killed

    with pytest.raises(Killed):
        run(config, kill_at_the_plan)
    assert {path.name for path in config.adapter.iterdir()} == {"metrics.jsonl"}
    (config.adapter / ".adapters.part.safetensors").write_text("torn")
    run(config)
    for name in ("checkpoint.safetensors", "run.json"):
        (config.adapter / name).unlink()
    with pytest.raises(InputError, match="exists already"):  # metrics of steps, and last/
        run(config)
    foreign = config.replace(adapter=tmp_path / "foreign")
    foreign.adapter.mkdir()
    (foreign.adapter / "metrics.jsonl").write_text("")
    (foreign.adapter / "adapters.safetensors").write_bytes((config.adapter / "adapters.safetensors").read_bytes())
    with pytest.raises(InputError, match="exists already"):
        run(foreign)
    train_nothing = config.replace(learning_rate=1e30, clip=0.0, schedule="constant", warmup=0.0, force=True)
    with pytest.raises(DistillError):
        run(train_nothing)
    assert mx.load(str(config.adapter / "adapters.safetensors"), return_metadata=True)[1]["moment"] == "best, step 0"


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


@pytest.mark.parametrize("room", [600, 50_000])
def test_a_full_disk_is_said_and_leaves_what_was_saved(config: TrainConfig, room: int) -> None:
    """Room for no more than a few lines of metrics, or for those and not for the weights."""
    run(config)
    before = weights_of(config.adapter)
    again = to_plain(config.replace(force=True, epochs=20, seed=1))
    finished = subprocess.run(
        [sys.executable, "-c", FULL_DISK, json.dumps(again), str(room)], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 1
    assert "cannot write" in finished.stderr and "Free disk space" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert all((before[name] == value).all() for name, value in weights_of(config.adapter).items())
    assert not list(config.adapter.glob(".*"))


def test_a_folder_that_cannot_be_made_or_written_is_named(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.geteuid() == 0:  # whom permissions do not stop
        closed = Path("/proc/self")
    for place in (tmp_path / "file" / "adapter", closed / "adapter"):
        with pytest.raises(DistillError, match=r"adapter|file") as error:
            run(config.replace(adapter=place))
        assert "choose" in error.value.next_step.lower()
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_run_is_not_continued_on_another_model_or_other_rows(config: TrainConfig, tmp_path: Path) -> None:
    run(config)
    kept = (config.adapter / "checkpoint.safetensors").read_bytes()
    twin = make_tiny_qwen2(tmp_path / "twin", seed=8)
    wider = make_tiny_qwen2(tmp_path / "wider", hidden=128)
    others = make_rows(tmp_path / "others", seed=2)
    for change, named in (
        ({"model": twin}, "weights of the model"),
        ({"model": wider}, "weights of the model"),
        ({"data": others}, "train rows"),
    ):
        with pytest.raises(InputError, match="other settings") as error:
            run(config.replace(resume=True, **change))
        assert any(named in problem for problem in error.value.problems)
    with pytest.raises(InputError, match="exists already"):
        run(config.replace(model=wider))
    assert (config.adapter / "checkpoint.safetensors").read_bytes() == kept
