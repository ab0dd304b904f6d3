"""The stage `logprobs`: right values for the student's tokens, only what is missing, and errors before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_distill.errors import InputError, Interrupted, MissingError
from mlx_distill.events import Event, Note, Progress
from mlx_distill.logprobs import LogprobsConfig
from mlx_distill.logprobs.run import run
from mlx_distill.models.context import ContextConfig
from mlx_distill.models.load import load_student
from mlx_distill.models.signal import TeacherSignal, row_key
from mlx_distill.models.tokenize import render, render_prompt
from mlx_distill.records import Example, Message
from tests.support.rows import make_rows
from tests.support.tiny import change_weights, make_tiny_qwen2, weights_of

SYSTEM = "You are a poet."
SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen2(tmp_path_factory.mktemp("teacher") / "teacher", seed=8, hidden=128)


@pytest.fixture
def config(tmp_path: Path, tiny_student: Path, teacher: Path) -> LogprobsConfig:
    return LogprobsConfig(
        teacher=f"mlx:{teacher}",
        model=tiny_student,
        data=make_rows(tmp_path / "rows"),
        top_k=8,
        teacher_context=ContextConfig(system=SYSTEM),
    )


def examples_of(config: LogprobsConfig) -> list[Example]:
    lines = [line for split in SPLITS for line in (config.data / f"{split}.jsonl").read_text().splitlines()]
    return [Example.from_json(json.loads(line)) for line in lines]


def edit_row(config: LogprobsConfig, number: int, change: Callable[[str], str]) -> None:
    file = config.data / "train.jsonl"
    lines = file.read_text().splitlines()
    lines[number] = change(lines[number])
    file.write_text("\n".join(lines) + "\n")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_stored_values_are_the_teachers_in_its_context(config: LogprobsConfig, teacher: Path) -> None:
    result = run(config)
    student, other = load_student(config.model), load_student(teacher)
    stored = TeacherSignal.open(config.out)
    n_tokens = 0
    for example in examples_of(config):
        chat = render(student.tokenizer, example.messages)
        answer = [token for token, counts in zip(chat.tokens, chat.mask, strict=True) if counts]
        seen = render_prompt(student.tokenizer, (Message("system", SYSTEM), example.messages[1]))
        logits = other.model(mx.array([[*seen, *answer]]))[0][len(seen) - 1 : -1]
        expected = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        ids, log_probs = stored.row(row_key(chat))
        assert ids.shape == log_probs.shape == (len(answer), 8)
        np.testing.assert_allclose(log_probs, np.take_along_axis(expected, ids.astype(int), -1), rtol=2**-10, atol=1e-5)
        np.testing.assert_allclose(log_probs, -np.sort(-expected)[:, :8], rtol=2**-10, atol=1e-5)
        n_tokens += len(answer)
    assert (result.n_tokens, result.n_scored, result.n_rows) == (n_tokens, n_tokens, 17)
    assert result.n_bytes > 4 * 8 * n_tokens
    assert 0 < result.mass < 1


def test_a_document_is_seen_by_the_teacher_only(config: LogprobsConfig, tiny_student: Path) -> None:
    edit_row(config, 0, lambda line: json.dumps({**json.loads(line), "context": "The stack is a queue."}))
    run(config)
    stored, tokenizer = TeacherSignal.open(config.out), load_student(tiny_student).tokenizer
    chat = render(tokenizer, examples_of(config)[0].messages)
    with_document, _ = stored.row(row_key(chat, "The stack is a queue."))
    assert len(with_document) == chat.n_supervised
    with pytest.raises(InputError, match="has no log-probabilities of row"):
        stored.row(row_key(chat))
    assert "The stack" not in tokenizer.decode(list(chat.tokens))


def test_a_second_run_scores_nothing_and_changes_nothing(config: LogprobsConfig) -> None:
    first = run(config)
    before = contents(config.out)
    again = run(config)
    assert (first.n_scored, again.n_scored) == (first.n_tokens, 0)
    assert again.mass == first.mass and again.tokens_per_second == 0.0
    assert contents(config.out) == before


def test_only_a_changed_row_is_scored_again(config: LogprobsConfig) -> None:
    run(config)
    edit_row(config, 3, lambda line: line.replace("return", "give"))
    result = run(config)
    student = load_student(config.model)
    assert result.n_scored == render(student.tokenizer, examples_of(config)[3].messages).n_supervised


@pytest.mark.parametrize(("shard_tokens", "n_whole"), [(1, 2), (60, 1), (10_000, 0)])
def test_interrupts_leave_whole_shards(config: LogprobsConfig, tmp_path: Path, shard_tokens: int, n_whole: int) -> None:
    def shards() -> list[Path]:
        return list(config.out.glob("*.safetensors"))

    def interrupt(event: Event) -> None:
        if isinstance(event, Progress) and len(shards()) == n_whole:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"after \d+ of \d+ shards?, which are in .*\nTo continue, run the same"):
        run(config, interrupt, shard_tokens=shard_tokens)
    assert len(shards()) == n_whole
    assert not list(config.out.glob(".*"))
    with pytest.raises(MissingError):
        TeacherSignal.open(config.out)
    run(config, shard_tokens=shard_tokens)
    whole = make_rows(tmp_path / "whole")
    run(config.replace(data=whole), shard_tokens=shard_tokens)
    assert contents(config.out) == contents(whole / "logprobs")


def test_row_order_changes_nothing(config: LogprobsConfig, tmp_path: Path) -> None:
    run(config, shard_tokens=60)
    other = make_rows(tmp_path / "other")
    lines = [line for split in SPLITS for line in (other / f"{split}.jsonl").read_text().splitlines(keepends=True)]
    for split, part in zip(SPLITS, (lines[9:], lines[3:9], lines[:3]), strict=True):
        (other / f"{split}.jsonl").write_text("".join(reversed(part)))
    run(config.replace(data=other), shard_tokens=60)
    assert contents(config.out) == contents(other / "logprobs")


def test_the_plan_comes_before_the_teacher(config: LogprobsConfig) -> None:
    events: list[Event] = []
    result = run(config, events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes[0].startswith(f"Teacher {config.teacher}: ") and "of memory for its weights" in notes[0]
    assert f"{result.n_tokens} answer tokens in 17 rows to score; top 8: 32 bytes a token" in notes[0]
    assert notes[1].startswith("Loading the teacher")
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.done == last.total == result.n_tokens and "left" in last.note


def test_other_weights_of_the_same_name_are_scored_again(config: LogprobsConfig, tmp_path: Path) -> None:
    folder = make_tiny_qwen2(tmp_path / "teacher", seed=8)
    config = config.replace(teacher=f"mlx:{folder}")
    run(config)
    norm = weights_of(folder)["model.norm.weight"]
    change_weights(folder, {"model.norm.weight": norm * 1.5})
    result = run(config)
    assert result.n_scored == result.n_tokens


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "anthropic:claude-sonnet-4-6"}, "not a model on this machine"),
        ({"top_k": 0}, "top_k is 0, so there is nothing to store"),
        ({"data": Path("nowhere")}, "train.jsonl: no such file.\nMake it with `mlx-distill prepare`"),
        ({"teacher": "mlx:nowhere"}, "there is no such folder"),
    ],
)
def test_errors_write_nothing(config: LogprobsConfig, changes: dict[str, object], message: str) -> None:
    wrong = config.replace(**changes)
    with pytest.raises((InputError, MissingError), match=message):
        run(wrong)
    assert not wrong.out.exists() and not Path("nowhere").exists()
    assert not list(config.data.glob(".*"))


def test_a_row_that_cannot_be_rendered_is_named(config: LogprobsConfig) -> None:
    edit_row(config, 2, lambda line: line.replace("return", "\\ud800"))
    with pytest.raises(InputError, match=r"train.jsonl: 1 problem.\n  train-2: The chat template cannot write"):
        run(config)


def test_no_rows_are_refused(config: LogprobsConfig) -> None:
    for split in SPLITS:
        (config.data / f"{split}.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no rows"):
        run(config)
