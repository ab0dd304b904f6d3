"""The adapter folder: what may be overwritten, and which checkpoints a run resumes from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_distill.errors import DistillError, InputError, MissingError
from mlx_distill.events import Event
from mlx_distill.train import TrainConfig
from mlx_distill.train.run import run
from tests.support.rows import make_rows
from tests.support.tiny import make_tiny_qwen2
from tests.support.training import same_weights


def test_a_finished_run_is_not_overwritten_unless_forced(config: TrainConfig, tmp_path: Path) -> None:
    run(config)
    run(config.replace(adapter=tmp_path / "same"))
    with pytest.raises(InputError, match="already exists"):
        run(config)
    with pytest.raises(InputError, match="already exists"):
        run(config.replace(rank=4))
    assert same_weights(config.adapter, tmp_path / "same")
    assert run(config.replace(force=True, epochs=1)).steps == 3


def test_a_run_that_saved_nothing_yet_is_started_again(config: TrainConfig) -> None:
    class Killed(BaseException):
        pass

    def kill_at_the_plan(event: Event) -> None:
        raise Killed

    with pytest.raises(Killed):
        run(config, kill_at_the_plan)
    assert {path.name for path in config.adapter.iterdir()} == {"metrics.jsonl"}
    (config.adapter / ".adapters.safetensors.x").write_text("a write that a kill cut off")
    run(config)


@pytest.mark.parametrize("name", ["adapters.safetensors", "notes.txt", "last/adapters.safetensors"])
def test_files_of_others_are_not_overwritten(config: TrainConfig, name: str) -> None:
    file = config.adapter / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    (config.adapter / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="already exists"):
        run(config)
    assert file.read_text() == "mine"


def test_a_run_that_never_improves_keeps_the_untrained_adapter(config: TrainConfig) -> None:
    with pytest.raises(DistillError):
        run(config.replace(learning_rate=1e30, max_grad_norm=0.0, schedule="constant", warmup=0.0))
    loaded: Any = mx.load(str(config.adapter / "adapters.safetensors"), return_metadata=True)
    assert loaded[1]["moment"] == "best, step 0"


def test_resume_restores_a_best_adapter_that_a_kill_left_out(config: TrainConfig, tmp_path: Path) -> None:
    run(config)
    run(config.replace(adapter=tmp_path / "same"))
    (config.adapter / "adapters.safetensors").unlink()
    run(config.replace(resume=True))
    assert same_weights(config.adapter, tmp_path / "same")


def test_resume_without_a_checkpoint_says_so(config: TrainConfig) -> None:
    with pytest.raises(MissingError, match="no checkpoint to resume from"):
        run(config.replace(resume=True))


def test_a_checkpoint_of_other_settings_is_not_resumed(config: TrainConfig, tmp_path: Path) -> None:
    run(config)
    before = (config.adapter / "checkpoint.safetensors").read_bytes()
    changes: list[tuple[dict[str, Any], str]] = [
        ({"rank": 4}, "rank: was 8, is 4"),
        ({"model": make_tiny_qwen2(tmp_path / "twin", seed=8)}, "weights of the model"),
        ({"model": make_tiny_qwen2(tmp_path / "wider", hidden=128)}, "weights of the model"),
        ({"data": make_rows(tmp_path / "others", seed=2)}, "train rows"),
    ]
    for change, problem in changes:
        with pytest.raises(InputError, match="other settings") as error:
            run(config.replace(resume=True, **change))
        assert any(text.startswith(problem) for text in error.value.problems)
    assert (config.adapter / "checkpoint.safetensors").read_bytes() == before
    assert run(config.replace(resume=True, micro_batch_tokens=64, checkpoint_every=1)).steps == 6


def test_a_broken_checkpoint_is_refused(config: TrainConfig) -> None:
    run(config)
    (config.adapter / "checkpoint.safetensors").write_text("{}")
    with pytest.raises(InputError, match="not a checkpoint of this version"):
        run(config.replace(resume=True))


def test_a_folder_that_cannot_be_written_is_named(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.geteuid() == 0:  # permissions do not stop root
        closed = Path("/proc/self")
    for place in (tmp_path / "file" / "adapter", closed / "adapter"):
        with pytest.raises(DistillError, match=r"adapter|file") as error:
            run(config.replace(adapter=place))
        assert "choose" in error.value.next_step.lower()
    assert (tmp_path / "file").read_text() == "in the way"
