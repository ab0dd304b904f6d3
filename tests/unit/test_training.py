"""The loop: exact, complete, repeatable, and safe to interrupt."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner import trainer as mlx_lm_trainer

from mlx_distill.errors import DistillError, InputError, MachineError, MissingError
from mlx_distill.models.adapter import attach
from mlx_distill.models.load import Student, load_student
from mlx_distill.models.score import pad
from mlx_distill.models.tokenize import Rendered
from mlx_distill.train import TrainConfig, TrainResult
from mlx_distill.train import run as loop
from mlx_distill.train.lora import make_trainable
from mlx_distill.train.objectives import OBJECTIVES, sft
from mlx_distill.train.rows import read_rows
from mlx_distill.train.run import run
from tests.support.rows import make_rows
from tests.support.training import metrics_of, same_weights, weights_of


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def config(tiny_student: Path, rows: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        model=tiny_student,
        data=rows,
        adapter=tmp_path / "adapter",
        epochs=2,
        batch_size=4,
        learning_rate=5e-3,
        checkpoint_every=2,
    )


def rows_of(path: Path, student: Student) -> tuple[Rendered, ...]:
    return read_rows(path, student, OBJECTIVES["sft"], 1024).rows


def test_training_lowers_the_loss_and_says_so(config: TrainConfig) -> None:
    result = run(config)
    assert result.valid_loss < result.valid_loss_before - 0.1
    assert result.stopped == "finished"
    assert result.steps == 6  # ceil(10 / 4) updates, two epochs
    assert result.n_valid_rows == 3
    assert json.loads((config.adapter / "run.json").read_text())["result"]["valid_loss"] == result.valid_loss


def test_every_row_is_learnt_once_an_epoch_remainder_included(config: TrainConfig) -> None:
    result = run(config)
    student = load_student(config.model)
    supervised = sum(row.n_supervised for row in rows_of(config.data / "train.jsonl", student))
    assert result.supervised_tokens == 2 * supervised
    steps = [line for line in metrics_of(config.adapter) if "train_loss" in line]
    assert sum(line["supervised_tokens"] for line in steps) == 2 * supervised


def test_metrics_hold_a_line_for_step_0_and_one_for_each_step(config: TrainConfig) -> None:
    run(config)
    lines = metrics_of(config.adapter)
    assert [line["step"] for line in lines] == list(range(7))
    assert "train_loss" not in lines[0]
    assert lines[0]["valid_loss"] > lines[3]["valid_loss"] > lines[6]["valid_loss"]
    always = {"step", "epoch", "peak_bytes", "seconds"}
    of_a_look = {"valid_loss", "valid_accuracy"}
    of_a_step = {"learning_rate", "train_loss", "train_accuracy", "supervised_tokens", "tokens", "padding"}
    of_a_step |= {"supervised_tokens_per_second", "tokens_per_second", "gradient_norm", "step_seconds"}
    assert set(lines[0]) == always | of_a_look
    for line in lines[1:]:
        assert set(line) == always | of_a_step | (of_a_look if line["step"] in (3, 6) else set())
    assert [line["epoch"] for line in lines] == [0, 0.333, 0.667, 1, 1.333, 1.667, 2]


def test_the_same_seed_gives_the_same_adapter_bit_for_bit_and_another_seed_does_not(
    config: TrainConfig, tmp_path: Path
) -> None:
    run(config.replace(dropout=0.1))
    run(config.replace(dropout=0.1, adapter=tmp_path / "again"))
    run(config.replace(dropout=0.1, adapter=tmp_path / "other", seed=1))
    assert same_weights(config.adapter, tmp_path / "again")
    assert not same_weights(config.adapter, tmp_path / "other")


def test_the_best_and_the_last_adapter_are_both_kept(config: TrainConfig) -> None:
    result = run(config.replace(epochs=12, learning_rate=0.2, schedule="constant", evaluate_every=1))
    assert 0 < result.best_step < result.steps, "the settings must overshoot for this test to mean anything"
    student = load_student(config.model)
    adapter = attach(student, config.adapter)
    best = loop.score(student, rows_of(config.data / "valid.jsonl", student))
    assert math.isclose(best.loss, result.valid_loss, rel_tol=1e-5)
    assert adapter.scale == config.scale
    assert not same_weights(config.adapter, config.adapter / "last")


def test_early_stopping_ends_a_run_that_no_longer_gains(config: TrainConfig) -> None:
    result = run(config.replace(epochs=30, learning_rate=0.1, patience=2))
    assert result.stopped == "early stop"
    assert result.epochs < 30


def test_a_time_budget_ends_the_run_with_the_schedule_run_down(config: TrainConfig) -> None:
    result = run(config.replace(epochs=100000, minutes=0.05))
    assert result.stopped == "time budget"
    assert result.seconds < 30
    rates = [line["learning_rate"] for line in metrics_of(config.adapter) if "learning_rate" in line]
    assert rates[-1] < 0.3 * max(rates)


def test_gradients_of_the_fused_loss_equal_a_plain_reference(config: TrainConfig) -> None:
    student = load_student(config.model, dtype=mx.float32)
    data = rows_of(config.data / "train.jsonl", student)
    make_trainable(student, config)
    for name, module in student.model.named_modules():
        if "lora_b" in module:  # zero at the start, which would hide half of the gradients
            module.lora_b = 0.05 * mx.random.normal(module.lora_b.shape, key=mx.random.key(len(name)))
    batch = pad(data, 8)

    def plain() -> mx.array:
        logits = student.model(batch.inputs).reshape(-1, student.config["vocab_size"])[batch.positions]
        return nn.losses.cross_entropy(logits, batch.targets, reduction="sum")

    loss, expected = nn.value_and_grad(student.model, plain)()
    (fused, correct), gradients = nn.value_and_grad(student.model, lambda: sft(student, batch))()
    assert math.isclose(loss.item(), fused.item(), rel_tol=1e-5)
    logits = student.model(batch.inputs).reshape(-1, student.config["vocab_size"])[batch.positions]
    assert correct.item() == (mx.argmax(logits, axis=-1) == batch.targets).sum().item()
    expected_of = dict(tree_flatten(expected))
    for name, value in tree_flatten(gradients):
        assert mx.allclose(value, expected_of[name], rtol=1e-4, atol=1e-5 * float(mx.abs(expected_of[name]).max())), (
            name
        )


def test_losses_equal_those_of_mlx_lms_trainer_on_the_same_unpadded_batches(config: TrainConfig) -> None:
    student = load_student(config.model, dtype=mx.float32)
    for row in rows_of(config.data / "train.jsonl", student):
        start = row.mask.index(True)
        lengths = mx.array([[start, len(row.tokens)]])
        theirs, count = mlx_lm_trainer.default_loss(student.model, mx.array([(*row.tokens, 0)]), lengths)
        if count.item() != row.n_supervised:  # mlx-lm counts one token past the end of a row; feed it none
            theirs, count = mlx_lm_trainer.default_loss(student.model, mx.array([row.tokens]), lengths)
        assert count.item() == row.n_supervised
        ours, _ = sft(student, pad([row]))
        assert math.isclose(theirs.item(), ours.item() / row.n_supervised, rel_tol=1e-5)


def test_accumulated_pieces_equal_one_batch(config: TrainConfig, tmp_path: Path) -> None:
    whole = config.replace(batch_size=10, epochs=1)
    run(whole)
    run(replace(whole, micro_tokens=64, adapter=tmp_path / "pieces"))
    one, pieces = metrics_of(config.adapter)[1], metrics_of(tmp_path / "pieces")[1]
    assert math.isclose(one["train_loss"], pieces["train_loss"], rel_tol=1e-5)
    assert math.isclose(one["gradient_norm"], pieces["gradient_norm"], rel_tol=1e-4)


def test_bfloat16_trains_with_the_adapter_and_its_optimiser_in_float32(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exact = run(config)
    monkeypatch.setattr(loop, "load_student", lambda path, dtype: load_student(path, dtype=mx.bfloat16))
    rough = run(config.replace(adapter=tmp_path / "rough"))
    assert math.isclose(exact.valid_loss_before, rough.valid_loss_before, rel_tol=2**-7)
    assert math.isclose(exact.valid_loss, rough.valid_loss, rel_tol=0.05)
    assert rough.valid_loss < rough.valid_loss_before - 0.1
    kept = mx.load(str(tmp_path / "rough" / "checkpoint.safetensors"))
    floating = [value for value in kept.values() if mx.issubdtype(value.dtype, mx.floating)]
    assert floating
    assert all(value.dtype == mx.float32 for value in floating)


def test_mlx_lm_reads_the_adapter(config: TrainConfig) -> None:
    from mlx_lm import load

    run(config)
    tuned, tokenizer = load(str(config.model), adapter_path=str(config.adapter))
    base, _ = load(str(config.model))
    tokens = mx.array([tokenizer.encode("Write a queue.")])
    assert not mx.allclose(tuned(tokens), base(tokens))


def test_chosen_layers_alone_are_adapted(config: TrainConfig) -> None:
    run(config.replace(epochs=1, targets=("self_attn.q_proj", "mlp.down_proj")))
    adapted = {name.rsplit(".", 1)[0].split(".", 3)[-1] for name in weights_of(config.adapter)}
    assert adapted == {"self_attn.q_proj", "mlp.down_proj"}


# -- interrupted ------------------------------------------------------------------------------------------------------


def train_in_a_process(config: TrainConfig, *more: str) -> subprocess.Popen[str]:
    arguments = ["--model", config.model, "--data", config.data, "--adapter", config.adapter, "--epochs", config.epochs]
    arguments += ["--learning-rate", config.learning_rate, "--batch-size", config.batch_size]
    arguments += ["--checkpoint-every", config.checkpoint_every, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "mlx_distill", "train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=config.adapter.parent,  # no project's settings but those given
    )


def wait_for_step(config: TrainConfig, step: int) -> None:
    metrics = config.adapter / "metrics.jsonl"
    for _ in range(6000):
        if metrics.exists() and metrics.read_text().count("\n") > step:
            return
        time.sleep(0.01)
    pytest.fail("the run never got there")


def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(config: TrainConfig, tmp_path: Path) -> None:
    long = config.replace(epochs=60, dropout=0.1)
    whole = run(replace(long, adapter=tmp_path / "whole"))
    draw = random.Random(0)
    first = train_in_a_process(long, "--dropout", "0.1")
    wait_for_step(long, 20 + draw.randint(0, 10))
    first.kill()
    assert first.wait() == -signal.SIGKILL
    first.communicate()
    with pytest.raises(InputError, match="interrupted"):
        run(long)
    resumed = run(replace(long, resume=True))
    assert resumed.steps == whole.steps
    assert same_weights(long.adapter / "last", tmp_path / "whole" / "last")
    assert same_weights(long.adapter, tmp_path / "whole")
    assert [line["step"] for line in metrics_of(long.adapter)] == list(range(whole.steps + 1))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_names_the_command_to_go_on(
    config: TrainConfig, number: signal.Signals, code: int
) -> None:
    long = config.replace(epochs=5000)
    process = train_in_a_process(long)
    wait_for_step(long, 3)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"mlx-distill train --resume --model {long.model} --data {long.data} --adapter {long.adapter}" in error
    assert "Traceback" not in error
    assert (long.adapter / "checkpoint.safetensors").exists()


def test_a_checkpoint_of_other_settings_is_not_resumed(config: TrainConfig) -> None:
    run(config)
    with pytest.raises(InputError, match="other settings") as error:
        run(config.replace(resume=True, rank=4))
    assert error.value.problems == ("rank: was 8, is 4",)


# -- refused ----------------------------------------------------------------------------------------------------------


def test_an_adapter_folder_is_not_overwritten_unless_told(config: TrainConfig) -> None:
    first = run(config)
    before = weights_of(config.adapter)
    with pytest.raises(InputError, match="exists already"):
        run(config)
    assert all(np.array_equal(before[name], value) for name, value in weights_of(config.adapter).items())
    assert isinstance(run(config.replace(force=True, epochs=1)), TrainResult)
    assert first.steps == 6


def test_rows_that_are_too_long_are_named_before_anything_is_written(config: TrainConfig) -> None:
    with pytest.raises(InputError) as error:
        run(config.replace(max_length=30))
    assert any("'train-" in problem and "max_length is 30" in problem for problem in error.value.problems)
    assert not config.adapter.exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(config: TrainConfig) -> None:
    with pytest.raises(MachineError, match=r"rows 'train-\d") as error:
        run(config.replace(learning_rate=1e30, clip=0.0, epochs=50))
    assert "checkpoint" in error.value.next_step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"rank": 0}, "rank is 0"),
        ({"learning_rate": 0.0}, "positive"),
        ({"learning_rate": math.nan}, "positive"),
        ({"dropout": 1.0}, "less than 1"),
        ({"warmup": 1.5}, "share of the run"),
        ({"schedule": "exponential"}, "not one of cosine"),
        ({"resume": True, "force": True}, "exclude"),
    ],
)
def test_settings_out_of_range_are_refused(config: TrainConfig, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.replace(**change)


def test_unknown_layers_are_refused_with_the_known_ones(config: TrainConfig) -> None:
    with pytest.raises(InputError, match="attn_q") as error:
        run(config.replace(targets=("attn_q",)))
    assert "self_attn.q_proj" in error.value.next_step


def test_missing_or_empty_rows_say_what_makes_them(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"train\.jsonl") as error:
        run(config.replace(data=tmp_path / "nowhere"))
    assert "mlx-distill prepare" in error.value.next_step
    empty = make_rows(tmp_path / "empty", valid=0)
    with pytest.raises(DistillError, match="holds no rows"):
        run(config.replace(data=empty))
