"""The kd objective: it learns the teacher's probabilities, and keeps what training promises."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_distill.cli.train import print_result
from mlx_distill.errors import InputError, Interrupted, MissingError
from mlx_distill.events import Event, Progress, ignore
from mlx_distill.models.context import ContextConfig
from mlx_distill.models.load import load_student
from mlx_distill.models.safetensors_io import map_arrays, write_arrays
from mlx_distill.models.score import score
from mlx_distill.records import Example, Message, content_hash
from mlx_distill.train import TrainConfig
from mlx_distill.train.data import read_rows
from mlx_distill.train.execution import Execution
from mlx_distill.train.lora import make_trainable
from mlx_distill.train.memory_plan import MemoryEstimate, make_plan
from mlx_distill.train.objectives import OBJECTIVES
from mlx_distill.train.objectives.kd import LiveRow, StoredKd
from mlx_distill.train.run import run
from mlx_distill.train.step import StepMetrics, TrainStep
from mlx_distill.training_run import TrainingRun, read_metrics
from tests.support.rows import make_rows
from tests.support.signals import write_signal
from tests.support.tiny import make_tiny_qwen2
from tests.support.training import same_weights, tokenized

STREAM = (mx.default_stream(mx.cpu),)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen2(tmp_path_factory.mktemp("models") / "teacher", seed=8)


@pytest.fixture(scope="module")
def taught_rows(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = make_rows(tmp_path_factory.mktemp("taught"))
    write_signal(rows, teacher, 16)
    return rows


@pytest.fixture(params=["stored", "mlx", "self"])
def any_kd(request: pytest.FixtureRequest, kd: TrainConfig, teacher: Path, tmp_path: Path) -> TrainConfig:
    """Return settings for each source of probabilities. The student's own weights teach with a context."""
    if request.param == "mlx":
        return kd.replace(teacher=f"mlx:{teacher}")
    return kd.replace(teacher="self", teacher_context=context(tmp_path)) if request.param == "self" else kd


def context(folder: Path) -> ContextConfig:
    """Return a context with a system message and one example dialogue."""
    dialogue = Example((Message("user", "Write queue."), Message("assistant", "def queue(): 1")))
    (folder / "shots.jsonl").write_text(json.dumps(dialogue.to_json()))
    return ContextConfig(system="You write Python.", examples=folder / "shots.jsonl")


@pytest.fixture
def kd(config: TrainConfig, taught_rows: Path) -> TrainConfig:
    return config.replace(objective="kd", data=taught_rows)


def copy_rows(config: TrainConfig, folder: Path) -> TrainConfig:
    """Return the config with rows of its own, without stored log-probabilities."""
    shutil.copytree(config.data, folder, ignore=shutil.ignore_patterns("logprobs"))
    return config.replace(data=folder)


def one_step(config: TrainConfig, micro_batch_tokens: int = 4096, compiled: bool = False) -> StepMetrics:
    """Take a step over all rows, and return its figures."""
    objective = OBJECTIVES["kd"](config, load_student(config.model, dtype=mx.float32))
    rows = read_rows(config.data / "train.jsonl", objective, 1024)
    make_trainable(objective.student, config)
    step = TrainStep(objective, rows, micro_batch_tokens, Execution(STREAM, compiled=compiled))
    step.optimizer.init(objective.student.model.trainable_parameters())
    return step.step(range(len(rows)), 1e-3, 1)


def test_kd_lowers_kl_and_saves_the_figures(kd: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(kd.replace(epochs=8))
    assert result.valid_kl is not None and result.valid_kl_before is not None
    assert result.valid_kl < 0.9 * result.valid_kl_before
    points = read_metrics(kd.adapter)
    assert min(point.valid_kl for point in points if point.valid_kl is not None) == result.valid_kl
    best = next(point for point in points if point.step == result.best_step)
    assert (best.valid_loss, best.valid_accuracy) == (result.valid_loss, result.valid_accuracy)
    saved = TrainingRun.load(kd.adapter)
    assert saved and saved.result["valid_kl"] == result.valid_kl
    assert result.summary().startswith(f"valid KL {result.valid_kl_before:.4f} → {result.valid_kl:.4f}, valid loss")
    print_result(result)
    printed = capsys.readouterr().out
    assert f"{result.valid_kl_before:.3f} → {result.valid_kl:.3f}" in printed
    assert f"{result.valid_loss_before:.3f} → {result.valid_loss:.3f}" in printed


def test_the_best_adapter_has_the_lowest_kl_not_loss(kd: TrainConfig) -> None:
    """This teacher knows nothing about the rows: who learns from it leaves their text."""
    result = run(kd.replace(epochs=6, eval_every=1, divergence="reverse"))
    points = [point for point in read_metrics(kd.adapter) if point.valid_kl is not None]
    lowest_loss = min(points, key=lambda point: point.valid_loss or 0)
    assert result.best_step == min(points, key=lambda point: point.valid_kl or 0).step
    assert result.best_step != lowest_loss.step


def test_evaluation_equals_plain_formulas(kd: TrainConfig, teacher: Path, tmp_path: Path) -> None:
    """With all probabilities stored, KL is that of the whole distributions, up to the rounding to float16."""
    vocabulary = load_student(teacher).config["vocab_size"]
    whole = copy_rows(kd, tmp_path / "rows")
    write_signal(whole.data, teacher, vocabulary)
    student, other = (load_student(path, dtype=mx.float32) for path in (kd.model, teacher))
    rows = read_rows(whole.data / "valid.jsonl", StoredKd(whole, student), 1024).chats
    found = StoredKd(whole, student).evaluate(rows, 0, ignore)
    kl, n_tokens = 0.0, 0
    for row in rows:
        p, q = (np.array(mx.softmax(side.model(mx.array([row.tokens[:-1]])), axis=-1))[0] for side in (other, student))
        supervised = np.array(row.mask[1:])
        kl += float((p * np.log(p / q)).sum(axis=-1)[supervised].sum())
        n_tokens += int(supervised.sum())
    plain = score(student, tokenized(whole.data / "valid.jsonl", student))
    assert found.kl == pytest.approx(kl / n_tokens, rel=1e-3)
    assert found.loss == pytest.approx(plain.loss, rel=1e-6)
    assert found.accuracy == plain.token_accuracy


def test_the_student_itself_teaches_nothing(kd: TrainConfig, tmp_path: Path) -> None:
    own = copy_rows(kd, tmp_path / "rows")
    write_signal(own.data, kd.model, 16)
    metrics = one_step(own)
    assert metrics.train_loss < 1e-5  # float16 on the disk
    assert metrics.gradient_norm < 1e-3 * one_step(kd).gradient_norm


@pytest.mark.parametrize("change", [{}, {"divergence": "jsd", "beta": 0.3}, {"hard_labels": 0.5, "temperature": 2.0}])
def test_micro_batches_and_compilation_change_nothing(any_kd: TrainConfig, change: dict[str, object]) -> None:
    kd = any_kd.replace(**change)
    whole = one_step(kd)
    for other in (one_step(kd, micro_batch_tokens=64), one_step(kd, compiled=True)):
        assert other.train_loss == pytest.approx(whole.train_loss, rel=1e-5)
        assert other.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-4)
        assert other.train_accuracy == whole.train_accuracy


@pytest.mark.parametrize("compiled", [False, True])
def test_a_resumed_kd_run_ends_with_equal_weights(any_kd: TrainConfig, tmp_path: Path, compiled: bool) -> None:
    kd = any_kd.replace(checkpoint_every=1, dropout=0.1, model=make_tiny_qwen2(tmp_path / "model", layers=1))
    execution = Execution(STREAM, compiled=compiled)
    run(kd.replace(adapter=tmp_path / "whole"), execution=execution)

    def interrupt(event: Event) -> None:
        if isinstance(event, Progress) and event.job == "train" and event.done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(kd, interrupt, execution=execution)
    run(kd.replace(resume=True), execution=execution)
    assert same_weights(kd.adapter, tmp_path / "whole")
    assert same_weights(kd.adapter / "last", tmp_path / "whole" / "last")


def test_a_teacher_in_memory_equals_its_stored_probabilities(kd: TrainConfig, teacher: Path, tmp_path: Path) -> None:
    whole = copy_rows(kd, tmp_path / "rows")
    write_signal(whole.data, teacher, load_student(teacher).config["vocab_size"])
    stored, live = one_step(whole), one_step(whole.replace(teacher=f"mlx:{teacher}"))
    assert live.train_loss == pytest.approx(stored.train_loss, rel=2e-3)  # stored in float16
    assert live.gradient_norm == pytest.approx(stored.gradient_norm, rel=1e-2)
    assert (live.train_accuracy, live.supervised_tokens) == (stored.train_accuracy, stored.supervised_tokens)


def test_only_the_teacher_sees_the_context(kd: TrainConfig, tmp_path: Path) -> None:
    student = load_student(kd.model, dtype=mx.float32)
    plain = kd.replace(teacher="self", teacher_context=ContextConfig(system=""))
    with_shots = plain.replace(teacher_context=context(tmp_path))
    assert one_step(plain).train_loss <= 1e-6
    assert one_step(with_shots).train_loss > 0.1
    rows = read_rows(kd.data / "train.jsonl", OBJECTIVES["kd"](with_shots, student), 1024).chats
    for row, own in zip(rows, tokenized(kd.data / "train.jsonl", student), strict=True):
        assert isinstance(row, LiveRow)
        assert (row.tokens, row.mask) == (own.tokens, own.mask)
        assert len(row.view.tokens) > len(row.tokens)
        assert row.view.n_supervised == row.n_supervised


def test_self_learns_to_behave_as_with_the_context(kd: TrainConfig, tmp_path: Path) -> None:
    result = run(kd.replace(teacher="self", teacher_context=context(tmp_path), epochs=8))
    assert result.valid_kl is not None and result.valid_kl_before is not None
    assert result.valid_kl < 0.9 * result.valid_kl_before


def test_the_memory_plan_counts_the_teacher(kd: TrainConfig, teacher: Path, tmp_path: Path) -> None:
    def plan(change: dict[str, object]) -> MemoryEstimate:
        objective = OBJECTIVES["kd"](kd.replace(**change), load_student(kd.model, dtype=mx.float32))
        rows = read_rows(kd.data / "train.jsonl", objective, 1024)
        make_trainable(objective.student, kd)
        estimate = make_plan(objective, rows.chats, Execution(STREAM), 1 << 40).estimate
        assert estimate
        return estimate

    stored, own, other = plan({}), plan({"teacher": "self"}), plan({"teacher": f"mlx:{teacher}"})
    assert own.weights == stored.weights
    assert other.weights - own.weights == 4 * load_student(teacher).n_parameters
    assert own.loss > stored.loss


def test_a_run_does_not_resume_with_another_teacher(kd: TrainConfig, tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, Progress) and event.job == "train" and event.done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    own = copy_rows(kd, tmp_path / "rows")
    write_signal(own.data, kd.model, 16)
    with pytest.raises(Interrupted):
        run(own, interrupt)
    write_signal(own.data, kd.model, 8)
    with pytest.raises(InputError, match="other settings") as error:
        run(own.replace(resume=True))
    assert any("log-probabilities" in problem for problem in error.value.problems)


def test_missing_and_foreign_log_probabilities_are_refused(kd: TrainConfig, tmp_path: Path) -> None:
    none = copy_rows(kd, tmp_path / "none")
    with pytest.raises(MissingError, match="no complete log-probabilities"):
        run(none)
    changed = copy_rows(kd, tmp_path / "changed")
    shutil.copytree(kd.data / "logprobs", changed.data / "logprobs")
    text = (changed.data / "train.jsonl").read_text()
    (changed.data / "train.jsonl").write_text(text.replace("return", "yield", 1))
    with pytest.raises(InputError, match="no log-probabilities of row 'train-0'"):
        run(changed)
    other = shutil.copytree(kd.model, tmp_path / "model")
    for file in (other / "tokenizer.json", other / "tokenizer_config.json"):
        file.write_text(file.read_text().replace("<|endoftext|>", "<|endofdocs|>"))
    with pytest.raises(InputError, match="another tokenizer"):
        run(kd.replace(model=other))
    assert not kd.adapter.exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"objective": "sft", "divergence": "reverse"}, "belong to objective kd"),
        ({"objective": "sft", "hard_labels": 0.5}, "belong to objective kd"),
        ({"beta": 0.3}, "beta belongs to divergence jsd"),
        ({"divergence": "jsd", "beta": 1.0}, "beta"),
        ({"temperature": 0.0}, "temperature"),
        ({"hard_labels": 1.0}, "hard_labels"),
        ({"method": "full"}, "choose method lora or dora"),
    ],
)
def test_settings_that_contradict_are_refused(kd: TrainConfig, change: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        kd.replace(**change)


def test_token_ids_that_the_student_lacks_are_refused(kd: TrainConfig, taught_rows: Path, tmp_path: Path) -> None:
    data = shutil.copytree(taught_rows, tmp_path / "hostile")
    folder = data / "logprobs"
    manifest = json.loads((folder / "manifest.json").read_text())
    file = folder / manifest["shards"][0]["file"]
    arrays, _ = map_arrays(file)
    source = {**manifest["source"], "vocabulary": 60_000}
    ids = np.full_like(arrays["ids"], 50_000)
    file.unlink()
    write_arrays(file, {**arrays, "ids": ids}, {"source": content_hash(source)})
    (folder / "manifest.json").write_text(json.dumps({**manifest, "source": source}))
    with pytest.raises(InputError, match="60000 token ids, more than"):
        StoredKd(kd.replace(data=data), load_student(kd.model, dtype=mx.float32))
