"""The training loop: complete, repeatable, resumable."""

from __future__ import annotations

import gc
import itertools
import math
import os
import signal
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm import load

from mlx_distill.errors import DistillError, InputError, Interrupted, MachineError, MissingError
from mlx_distill.events import Event, Note, Progress
from mlx_distill.models.adapter import load_adapter
from mlx_distill.models.load import load_student
from mlx_distill.models.score import score
from mlx_distill.train import TrainConfig
from mlx_distill.train.run import run
from mlx_distill.training_run import TrainingRun
from tests.support.rows import make_rows
from tests.support.training import read_metrics, same_weights, tokenized


def test_training_lowers_the_loss_and_saves_the_figures(config: TrainConfig) -> None:
    events: list[Event] = []
    result = run(config, events.append)
    assert result.valid_loss < result.valid_loss_before - 0.1
    assert (result.stopped, result.steps, result.n_valid_rows) == ("finished", 6, 3)
    assert result.summary().startswith(f"valid loss {result.valid_loss_before:.3f} → {result.valid_loss:.3f}, accuracy")
    saved = TrainingRun.load(config.adapter)
    assert saved
    assert saved.result["valid_loss"] == result.valid_loss
    assert saved.settings["learning_rate"] == config.learning_rate
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes[0].startswith("10 rows, 3 steps an epoch, 6 in all; lora rank 8")
    assert [event.done for event in events if isinstance(event, Progress) and event.job == "train"] == [*range(1, 7)]


def test_each_epoch_trains_on_every_row(config: TrainConfig) -> None:
    result = run(config)
    student = load_student(config.model)
    supervised = sum(row.n_supervised for row in tokenized(config.data / "train.jsonl", student))
    steps = [line for line in read_metrics(config.adapter) if "train_loss" in line]
    assert result.supervised_tokens == sum(line["supervised_tokens"] for line in steps) == 2 * supervised


def test_metrics_have_one_line_for_each_step(config: TrainConfig) -> None:
    run(config)
    lines = read_metrics(config.adapter)
    assert [line["step"] for line in lines] == list(range(7))
    assert [line["epoch"] for line in lines] == [0, 0.333, 0.667, 1, 1.333, 1.667, 2]
    assert lines[0]["valid_loss"] > lines[3]["valid_loss"] > lines[6]["valid_loss"]
    always = {"step", "epoch", "peak_bytes", "seconds"}
    evaluation = {"valid_loss", "valid_accuracy"}
    step = {"learning_rate", "train_loss", "train_accuracy", "train_cross_entropy"}
    step |= {"supervised_tokens", "tokens", "padding"}
    step |= {"supervised_tokens_per_second", "tokens_per_second", "gradient_norm", "step_seconds"}
    assert set(lines[0]) == always | evaluation
    for line in lines[1:]:
        assert set(line) == always | step | (evaluation if line["step"] in (3, 6) else set())


def test_the_seed_decides_the_adapter_bit_for_bit(config: TrainConfig, tmp_path: Path) -> None:
    run(config.replace(dropout=0.1))
    run(config.replace(dropout=0.1, adapter=tmp_path / "again"))
    run(config.replace(dropout=0.1, adapter=tmp_path / "other", seed=1))
    assert same_weights(config.adapter, tmp_path / "again")
    assert not same_weights(config.adapter, tmp_path / "other")


def test_best_and_last_adapter_are_kept(config: TrainConfig) -> None:
    overshooting = config.replace(epochs=4, learning_rate=0.2, schedule="constant", eval_every=1, force=True)
    results = (run(overshooting.replace(seed=seed)) for seed in range(9))  # the best step depends on rounding
    result = next(result for result in results if 0 < result.best_step < result.steps)
    student = load_student(config.model)
    adapter = load_adapter(student, config.adapter)
    best = score(student, tokenized(config.data / "valid.jsonl", student))
    assert math.isclose(best.loss, result.valid_loss, rel_tol=1e-5)
    assert adapter.scale == config.scale
    assert adapter.checkpoint == f"best, step {result.best_step}"
    assert not same_weights(config.adapter, config.adapter / "last")


def test_early_stopping(config: TrainConfig) -> None:
    result = run(config.replace(epochs=30, learning_rate=0.1, patience=2))
    assert result.stopped == "early stop"
    assert result.epochs < 30


def test_time_budget_ends_the_run_and_its_schedule(config: TrainConfig) -> None:
    clock = itertools.count()  # each reading is 0.1 s later
    result = run(config.replace(epochs=1000, time_budget_minutes=0.5), now=lambda: next(clock) / 10)
    assert result.stopped == "time budget"
    assert result.seconds <= 30 + 1
    rates = [line["learning_rate"] for line in read_metrics(config.adapter) if "learning_rate" in line]
    assert rates[-1] < 0.3 * max(rates)
    assert "valid_loss" in read_metrics(config.adapter)[-1]


def test_bfloat16_trains_float32_adapters(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLX_DISTILL_DTYPE", "float32")
    exact = run(config)
    monkeypatch.setenv("MLX_DISTILL_DTYPE", "bfloat16")
    rough = run(config.replace(adapter=tmp_path / "rough"))
    assert rough.valid_loss_before != exact.valid_loss_before
    assert math.isclose(exact.valid_loss_before, rough.valid_loss_before, rel_tol=2**-7)
    assert math.isclose(exact.valid_loss, rough.valid_loss, rel_tol=0.05)
    checkpoint = mx.load(str(tmp_path / "rough" / "checkpoint.safetensors"))
    assert isinstance(checkpoint, dict)
    floating = [value for value in checkpoint.values() if mx.issubdtype(value.dtype, mx.floating)]
    assert floating
    assert all(value.dtype == mx.float32 for value in floating)


def test_mlx_lm_reads_the_adapter(config: TrainConfig) -> None:
    run(config)
    tuned, tokenizer = load(str(config.model), adapter_path=str(config.adapter))
    base, _ = load(str(config.model))
    tokens = mx.array([tokenizer.encode("Write a queue.")])
    assert not mx.allclose(tuned(tokens), base(tokens))


def test_a_run_frees_its_memory(config: TrainConfig) -> None:
    gc.collect()
    gc.disable()  # a reference cycle would keep the model until the next collection
    try:
        before = mx.get_active_memory()
        run(config.replace(grad_checkpoint=True))
        assert mx.get_active_memory() - before < 1000
    finally:
        gc.enable()


# -- interrupted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_signal_saves_after_the_step_and_resume_is_exact(
    config: TrainConfig, tmp_path: Path, number: int, code: int
) -> None:
    config = config.replace(dropout=0.1, checkpoint_every=50)
    whole = run(config.replace(adapter=tmp_path / "whole"))

    def interrupt(event: Event) -> None:
        if isinstance(event, Progress) and event.job == "train" and event.done == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="after step 4 of 6, with a checkpoint in") as stopped:
        run(config, interrupt)
    assert stopped.value.exit_code == code
    assert "run the same command with --resume" in stopped.value.next_step
    with pytest.raises(InputError, match="holds an interrupted run"):
        run(config)
    assert len(read_metrics(config.adapter)) == 5

    resumed = run(config.replace(resume=True))
    assert resumed.steps == whole.steps
    assert same_weights(config.adapter / "last", tmp_path / "whole" / "last")
    assert same_weights(config.adapter, tmp_path / "whole")
    assert [line["step"] for line in read_metrics(config.adapter)] == list(range(7))


def test_resume_drops_metrics_after_the_checkpoint(config: TrainConfig) -> None:
    run(config)
    with (config.adapter / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train_loss": 1.0}\n{"step": 8, "tra')
    run(config.replace(resume=True))
    assert [line["step"] for line in read_metrics(config.adapter)] == list(range(7))


def test_metrics_that_cannot_be_written_leave_the_checkpoint(config: TrainConfig) -> None:
    metrics = config.adapter / "metrics.jsonl"

    def block(event: Event) -> None:
        if isinstance(event, Progress) and event.job == "train" and event.done == 3:
            metrics.rename(metrics.with_suffix(".old"))
            metrics.mkdir()

    with pytest.raises(MachineError, match=r"metrics\.jsonl: cannot write") as error:
        run(config, block)
    assert "Free disk space" in error.value.next_step
    metrics.rmdir()
    metrics.with_suffix(".old").rename(metrics)
    assert run(config.replace(resume=True)).steps == 6


# -- refused ----------------------------------------------------------------------------------------------------------


def test_too_long_rows_are_named_before_anything_is_written(config: TrainConfig) -> None:
    with pytest.raises(InputError) as error:
        run(config.replace(max_length=30))
    assert any("'train-" in problem and "max_length is 30" in problem for problem in error.value.problems)
    assert not config.adapter.exists()


def test_a_non_finite_loss_names_the_rows(config: TrainConfig) -> None:
    with pytest.raises(MachineError, match=r"rows 'train-\d") as error:
        run(config.replace(learning_rate=1e30, max_grad_norm=0.0, epochs=50))
    assert "checkpoint" in error.value.next_step


def test_missing_or_empty_rows_name_the_command(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"train\.jsonl") as error:
        run(config.replace(data=tmp_path / "nowhere"))
    assert "mlx-distill prepare" in error.value.next_step
    with pytest.raises(DistillError, match="holds no rows"):
        run(config.replace(data=make_rows(tmp_path / "empty", valid=0)))


def test_an_unknown_objective_is_refused_with_the_known_ones(config: TrainConfig) -> None:
    with pytest.raises(InputError, match="'kdd' is unknown") as error:
        run(config.replace(objective="kdd"))
    assert "sft" in error.value.next_step
    assert not config.adapter.exists()
