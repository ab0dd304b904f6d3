"""The on-policy objective: the student writes, a local teacher scores, and the run keeps what training promises."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_distill.errors import InputError, Interrupted, MachineError
from mlx_distill.events import Event, Progress
from mlx_distill.models.context import ContextConfig
from mlx_distill.models.generate import generate_batch
from mlx_distill.models.load import load_student
from mlx_distill.records import Example, Message
from mlx_distill.similarity import repetition
from mlx_distill.storage import files
from mlx_distill.train import TrainConfig
from mlx_distill.train.data import Rows, read_rows
from mlx_distill.train.divergences import Divergence, Sides, TeacherHead, sum_divergence
from mlx_distill.train.execution import Execution
from mlx_distill.train.lora import make_trainable
from mlx_distill.train.memory_plan import MemoryEstimate, estimate_memory
from mlx_distill.train.objectives.kd import LiveRow
from mlx_distill.train.objectives.on_policy import WINDOW, OnPolicy, answer_of, answer_start
from mlx_distill.train.run import run
from mlx_distill.train.step import StepMetrics, TrainStep
from tests.support.tiny import make_tiny_qwen2
from tests.support.training import read_metrics, same_weights

STREAM = (mx.default_stream(mx.cpu),)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen2(tmp_path_factory.mktemp("models") / "teacher", seed=8)


@pytest.fixture
def on_policy(config: TrainConfig, teacher: Path) -> TrainConfig:
    return config.replace(objective="on-policy", teacher=f"mlx:{teacher}", divergence="reverse", rollout_tokens=12)


def opened(config: TrainConfig) -> tuple[OnPolicy, Rows]:
    """Return the objective with an adapter on its student, and the training rows."""
    objective = OnPolicy(config, load_student(config.model, dtype=mx.float32))
    rows = read_rows(config.data / "train.jsonl", objective, 1024)
    make_trainable(objective.student, config)
    return objective, rows


def rolled(config: TrainConfig, step: int = 1) -> tuple[Sequence[Any], Sequence[LiveRow]]:
    """Return the training rows, and a roll of them."""
    objective, rows = opened(config)
    return rows.chats, objective.rows_for_step(rows.chats, step)


def one_step(config: TrainConfig, micro_batch_tokens: int = 4096, compiled: bool = False) -> StepMetrics:
    objective, rows = opened(config)
    step = TrainStep(objective, rows, micro_batch_tokens, Execution(STREAM, compiled=compiled))
    step.optimizer.init(objective.student.model.trainable_parameters())
    return step.step(range(len(rows)), 1e-3, 1)


def interrupt_after(step: int) -> Any:
    def report(event: Event) -> None:
        if isinstance(event, Progress) and event.job == "train" and event.done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


def test_on_policy_lowers_kl_to_another_model(on_policy: TrainConfig) -> None:
    result = run(on_policy.replace(divergence="forward", epochs=8, rollout_samples=2))
    assert result.valid_kl is not None and result.valid_kl_before is not None
    assert result.valid_kl < 0.8 * result.valid_kl_before
    evaluations = [line["valid_kl"] for line in read_metrics(on_policy.adapter) if "valid_kl" in line]
    assert result.valid_kl == min(evaluations)


@pytest.mark.parametrize("divergence", ["reverse", "jsd"])
def test_the_divergence_falls_on_the_students_own_text(on_policy: TrainConfig, divergence: str) -> None:
    run(on_policy.replace(divergence=divergence, epochs=8, rollout_samples=2))
    losses = [line["train_loss"] for line in read_metrics(on_policy.adapter) if line["step"]]
    assert sum(losses[-6:]) < 0.95 * sum(losses[:6])


def test_a_rollout_is_what_the_student_drew(on_policy: TrainConfig) -> None:
    """Tokens are those of the sampler, whatever their text would be tokenized to. Only they are supervised."""
    config = on_policy.replace(rollout_samples=4, rollout_tokens=48)
    objective, rows = opened(config)
    answers = objective.rows_for_step(rows.chats, 3)
    asked = [row for row in rows.chats for _ in range(4)]
    prompts = [list(row.tokens[: answer_start(row)]) for row in asked]
    drawn = generate_batch(objective.student, prompts, max_tokens=48, temperature=1.0, seed=config.step_seed(3))
    tokenizer = objective.student.tokenizer
    for row, prompt, found in zip(answers, prompts, drawn, strict=True):
        start = len(prompt)
        assert (list(row.tokens[:start]), row.tokens[start:]) == (prompt, answer_of(found))
        assert row.mask == (False,) * start + (True,) * len(answer_of(found))
        assert (row.tokens[-1] in tokenizer.eos_token_ids) == found.finished
        assert not set(row.tokens[start:-1]) & tokenizer.eos_token_ids
    assert {found.finished for found in drawn} == {True, False}
    assert any(tuple(tokenizer.encode(found.text, add_special_tokens=False)) != found.tokens for found in drawn)


def test_rollouts_depend_on_seed_and_step_alone(on_policy: TrainConfig) -> None:
    first, again, later, other = (
        [row.tokens for row in rolled(config, step)[1]]
        for config, step in ((on_policy, 1), (on_policy, 1), (on_policy, 2), (on_policy.replace(seed=1), 1))
    )
    assert first == again
    assert first != later and first != other


def test_only_the_teacher_sees_the_context(on_policy: TrainConfig, tmp_path: Path) -> None:
    dialogue = Example((Message("user", "Write queue."), Message("assistant", "def queue(): 1")))
    (tmp_path / "shots.jsonl").write_text(json.dumps(dialogue.to_json()))
    context = ContextConfig(system="You write Python.", examples=tmp_path / "shots.jsonl")
    rows, answers = rolled(on_policy.replace(teacher="self", teacher_context=context))
    for row, found in zip(rows, answers, strict=True):
        start = answer_start(row)
        assert found.tokens[:start] == row.tokens[:start]
        assert found.view.tokens[: answer_start(found.view)] == row.view.tokens[: answer_start(row.view)]
        assert len(found.view.tokens) > len(found.tokens)
        assert found.view.tokens[answer_start(found.view) :] == found.tokens[start:]


def test_the_last_answer_of_a_dialogue_is_written_again(on_policy: TrainConfig, tmp_path: Path) -> None:
    turns = (Message("user", "Hi"), Message("assistant", "Yes."), Message("user", "Why?"), Message("assistant", "So."))
    for name in (files.TRAIN, files.VALID):
        (tmp_path / name).write_text(json.dumps(Example(turns, id="a").to_json()) + "\n")
    (row,), (found,) = rolled(on_policy.replace(data=tmp_path))
    start = answer_start(row)
    assert start > row.mask.index(True)
    assert found.tokens[:start] == row.tokens[:start] and not any(found.mask[:start])


def test_prepared_rows_take_their_share(on_policy: TrainConfig) -> None:
    objective, rows = opened(on_policy.replace(prepared_share=0.5))
    n_kept, every = 0, {row.tokens for row in rows.chats}
    for step in range(1, 9):
        answers = objective.rows_for_step(rows.chats, step)
        assert len(answers) == len(rows)
        n_kept += sum(row.tokens in every for row in answers)
    assert 0.25 < n_kept / (8 * len(rows)) < 0.75


def test_a_teacher_that_is_the_student_teaches_nothing(on_policy: TrainConfig) -> None:
    same = one_step(on_policy.replace(teacher="self", teacher_context=ContextConfig(system="")))
    assert same.train_loss <= 1e-6
    assert same.train_cross_entropy > 1
    assert same.gradient_norm < 1e-3 * one_step(on_policy).gradient_norm


@pytest.mark.parametrize("change", [{}, {"divergence": "jsd", "prepared_share": 0.4}, {"rollout_samples": 3}])
def test_micro_batches_and_compilation_change_nothing(on_policy: TrainConfig, change: dict[str, object]) -> None:
    config = on_policy.replace(**change)
    whole = one_step(config)
    for other in (one_step(config, micro_batch_tokens=64), one_step(config, compiled=True)):
        assert other.train_loss == pytest.approx(whole.train_loss, rel=1e-5)
        assert other.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-4)
        assert other.figures == whole.figures


@pytest.mark.parametrize("n_streams", [1, 2])
def test_a_resumed_run_ends_with_equal_weights(on_policy: TrainConfig, tmp_path: Path, n_streams: int) -> None:
    config = on_policy.replace(checkpoint_every=1, dropout=0.1, prepared_share=0.3)
    execution = Execution([mx.new_stream(mx.cpu) for _ in range(n_streams)])
    run(config.replace(adapter=tmp_path / "whole"), execution=execution)
    with pytest.raises(Interrupted):
        run(config, interrupt_after(2), execution=execution)
    with (config.adapter / files.ROLLOUTS).open("a") as file:  # a kill before the next checkpoint leaves this
        file.write('{"step": 3, "answer_tokens": 1, "cut_off": 0, "repetition": 0, "samples": []}\n{"step": 4')
    run(config.replace(resume=True), execution=execution)
    for part in ("", "last"):
        assert same_weights(config.adapter / part, tmp_path / "whole" / part)
    ours, whole = ((folder / files.ROLLOUTS).read_text() for folder in (config.adapter, tmp_path / "whole"))
    assert ours == whole


def test_each_step_reports_its_rollouts(on_policy: TrainConfig) -> None:
    events: list[Event] = []
    run(on_policy, events.append)
    steps = [line for line in read_metrics(on_policy.adapter) if line["step"]]
    kept = [json.loads(line) for line in (on_policy.adapter / files.ROLLOUTS).read_text().splitlines()]
    for line, rollouts in zip(steps, kept, strict=True):
        names = ("step", "answer_tokens", "cut_off", "repetition")
        assert {name: line[name] for name in names} == {name: rollouts[name] for name in names}
        assert 1 <= line["answer_tokens"] <= 12 and 0 <= line["cut_off"] <= 1
        assert "figures" not in line and line["train_cross_entropy"] > 0
        assert rollouts["samples"][0].keys() == {"prompt", "answer", "finished"}
        assert rollouts["samples"][0]["prompt"].endswith("<|im_start|>assistant\n")
    last = [event for event in events if isinstance(event, Progress) and event.job == "train"][-1]
    assert all(name in last.note for name in ("answer tokens", "cut off", "repetition", "cross-entropy"))


def test_answers_that_run_away_end_the_run(on_policy: TrainConfig) -> None:
    """The first steps are made to look as if they had short answers."""
    config = on_policy.replace(epochs=4, checkpoint_every=1)
    with pytest.raises(Interrupted):
        run(config, interrupt_after(2 * WINDOW - 1))
    file = config.adapter / files.ROLLOUTS
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    short = [{**line, "answer_tokens": 2.0} if line["step"] <= WINDOW else line for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in short))
    best = (config.adapter / files.ADAPTER_WEIGHTS).read_bytes()
    with pytest.raises(MachineError, match="Step 10: the student's answers run away") as error:
        run(config.replace(resume=True))
    assert "from 2 to 12 tokens" in error.value.message
    assert "best adapter" in error.value.next_step and "--learning-rate" in error.value.next_step
    assert (config.adapter / files.ADAPTER_WEIGHTS).read_bytes() == best


def test_batches_take_a_fourth_of_the_forward_passes(on_policy: TrainConfig) -> None:
    objective, rows = opened(on_policy)
    student, passes = objective.student, 0

    class Counting(type(student.model)):  # type: ignore[misc]
        def __call__(self, *values: Any, **named: Any) -> Any:
            nonlocal passes
            passes += 1
            return super().__call__(*values, **named)

    student.model.__class__ = Counting
    student.model.eval()
    prompts = [list(row.tokens[: answer_start(row)]) for row in rows.chats]
    together = generate_batch(student, prompts, max_tokens=24)
    in_batches, passes = passes, 0
    alone = [generate_batch(student, [prompt], max_tokens=24)[0] for prompt in prompts]
    assert [answer_of(found) for found in together] == [answer_of(found) for found in alone]
    assert 4 * in_batches <= passes


def test_the_memory_plan_counts_teacher_and_rollouts(on_policy: TrainConfig, teacher: Path) -> None:
    def plan(**change: object) -> MemoryEstimate:
        objective, rows = opened(on_policy.replace(**change))
        return estimate_memory(objective, rows.chats, 4096, Execution(STREAM))

    short, long, many = plan(), plan(rollout_tokens=400), plan(rollout_samples=8)
    assert short.weights - plan(teacher="self").weights == 4 * load_student(teacher).n_parameters
    assert long.activations > 2 * short.activations and many.activations > 2 * short.activations
    objective, rows = opened(on_policy)
    one_layer = 2 * 2 * 16 * 4 * 256  # keys and values of two heads of size 16 in float32, for 256 tokens
    assert objective.rollout_bytes(rows.chats[:3]) == 2 * 3 * 2 * one_layer


def test_drawn_tokens_give_the_reverse_gradient() -> None:
    """The mean of log(q / p) times the slope of log q over draws from q is the exact gradient."""
    vocabulary, n_draws = 300, 200_000
    draw = np.random.default_rng(3)
    student, other = (draw.normal(size=vocabulary).astype(np.float32) for _ in range(2))
    q, p = (np.exp(side) / np.exp(side).sum() for side in (student, other))
    counts = draw.multinomial(n_draws, q.astype(np.float64) / q.astype(np.float64).sum())
    ratio = np.log(q / p)
    drawn = (counts * ratio - (counts * ratio).sum() * q) / n_draws

    def loss(hidden: mx.array) -> mx.array:
        side = TeacherHead(lambda values: values, mx.array(other)[None])
        targets = mx.array([0])
        return sum_divergence(
            Divergence("reverse"), Sides(lambda values: values, hidden, targets, side, vocabulary)
        ).loss

    exact = np.array(mx.grad(loss)(mx.array(student)[None]))[0]
    assert np.linalg.norm(drawn - exact) < 0.05 * np.linalg.norm(exact)


def test_repetition_counts_phrases_seen_before() -> None:
    assert repetition([1, 2, 3]) == 0
    assert repetition(range(20)) == 0
    assert repetition([7] * 13) == 0.9
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"teacher": ""}, "needs a teacher on this machine"),
        ({"hard_labels": 0.5}, "belongs to objective kd"),
        ({"prepared_share": 1.0}, "prepared_share"),
        ({"rollout_tokens": 0}, "rollout_tokens"),
        ({"rollout_temperature": float("inf")}, "finite"),
        ({"objective": "kd"}, "belong to objective on-policy"),
        ({"method": "full"}, "choose method lora or dora"),
    ],
)
def test_settings_that_contradict_are_refused(on_policy: TrainConfig, change: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        on_policy.replace(**change)


def test_a_teacher_elsewhere_is_refused(on_policy: TrainConfig) -> None:
    with pytest.raises(InputError, match="not a model on this machine") as error:
        run(on_policy.replace(teacher="anthropic:claude"))
    assert "mlx:FOLDER" in error.value.next_step
    assert not on_policy.adapter.exists()
