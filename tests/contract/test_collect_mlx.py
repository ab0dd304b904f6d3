"""collect with a model of this machine: its answers, the batch, and what a kill leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.generate import BatchGenerator, stream_generate

from mlx_distill.errors import DistillError, InputError, Interrupted, MachineError, MissingError
from mlx_distill.models.context import ContextConfig
from mlx_distill.models.load import Student, load_student
from mlx_distill.models.tokenize import render_prompt
from mlx_distill.records import Message, TeacherRecord
from mlx_distill.storage.atomic import write_jsonl
from mlx_distill.teachers import mlx_model, open_teacher
from tests.support.collecting import Collect, Records, journal_of
from tests.support.templates import OPENING
from tests.support.tiny import change_weights, edit_json, weights_of


@pytest.fixture
def teacher(tiny_student: Path) -> str:
    return f"mlx:{tiny_student}"


def one_by_one(student: Student, record: TeacherRecord) -> tuple[str, str, int]:
    """Return the text, the end and the tokens of mlx-lm's own greedy answer."""
    prompt = render_prompt(student.tokenizer, record.messages)
    tokens: list[int] = []
    reason = None
    for chunk in stream_generate(student.model, student.tokenizer, prompt, max_tokens=record.max_tokens):
        tokens.append(chunk.token)
        reason = chunk.finish_reason
    ended = reason == "stop"
    text = student.tokenizer.decode(tokens[:-1] if ended else tokens)
    return text, "end_turn" if ended else "max_tokens", len(tokens)


def test_greedy_answers_equal_one_by_one(tiny_student: Path, collect: Collect, records: Records) -> None:
    prompts = [f"Prompt {number}" + " and more" * number for number in range(20)]
    result = collect(*prompts, temperature=0.0, max_tokens=24, concurrency=8)

    student = load_student(tiny_student)
    found = [TeacherRecord.from_json(record) for record in records()]
    assert (result.n_answered, result.cost_usd) == (20, 0.0)
    for record in found:
        text, stop_reason, n_tokens = one_by_one(student, record)
        assert (record.answer, record.stop_reason, record.usage.output_tokens) == (text, stop_reason, n_tokens)
        assert record.usage.input_tokens == len(render_prompt(student.tokenizer, record.messages))
        assert (record.cost_usd, record.teacher, record.seconds > 0) == (0.0, f"mlx:{tiny_student}", True)


@pytest.fixture
def forward_passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the tokens in each forward pass of the teacher."""
    shapes: list[tuple[int, ...]] = []

    class Counted(nn.Module):  # type: ignore[misc]
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def __call__(self, tokens: mx.array, *arguments: Any, **options: Any) -> Any:
            shapes.append(tokens.shape)
            return self.inner(tokens, *arguments, **options)

        @property
        def layers(self) -> Any:
            return self.inner.layers

    def load(path: Path, **options: Any) -> Student:
        student = load_student(path, **options)
        student.model = Counted(student.model)
        return student

    monkeypatch.setattr(mlx_model, "load_student", load)
    return shapes


@pytest.fixture
def endless(tiny_student: Path, tmp_path: Path) -> Path:
    """A model that never ends a greedy answer: the end tokens' logit is 0, and another token's is above."""
    folder = tmp_path / "endless"
    shutil.copytree(tiny_student, folder)
    embedding = weights_of(folder)["model.embed_tokens.weight"]
    edit_json(folder / "config.json", tie_word_embeddings=False)
    embedding[0] = embedding[2] = mx.zeros_like(embedding[0])
    embedding[5] = -embedding[4]
    change_weights(folder, {"lm_head.weight": embedding})
    return folder


def test_batch_needs_fewer_forward_passes(
    endless: Path, collect: Collect, forward_passes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def n_steps(concurrency: int) -> int:
        class Full(BatchGenerator):  # type: ignore[misc]
            def next(self) -> Any:  # waits for a full batch, so that the count does not depend on the machine
                return super().next() if self._uid_count % concurrency == 0 else ([], [])

        monkeypatch.setattr(mlx_model, "BatchGenerator", Full)
        forward_passes.clear()
        shutil.rmtree(endless.parent / "out", ignore_errors=True)
        collect(n=16, teacher=f"mlx:{endless}", max_tokens=32, temperature=0.0, concurrency=concurrency)
        return sum(shape[1] == 1 for shape in forward_passes)

    alone, together = n_steps(1), n_steps(8)
    assert alone >= 16 * 32
    assert together * 8 <= alone


def test_model_that_never_ends_is_cut_off(endless: Path, collect: Collect, records: Records) -> None:
    result = collect(n=3, teacher=f"mlx:{endless}", max_tokens=10, temperature=0.0)

    assert result.stop_reasons == {"max_tokens": 3}
    assert [record["usage"]["output_tokens"] for record in records()] == [10, 10, 10]


def test_context_window_limits_the_answer(endless: Path, collect: Collect, records: Records) -> None:
    edit_json(endless / "config.json", max_position_embeddings=100)
    result = collect("Short", "Long " * 200, teacher=f"mlx:{endless}", max_tokens=500, temperature=0.0)

    [record] = records()
    assert sum(record["usage"][name] for name in ("input_tokens", "output_tokens")) == 100
    assert "fill the model's context of 100" in result.failed[0].reason


def test_samples_differ_and_repeat_with_the_seed(collect: Collect, records: Records, tmp_path: Path) -> None:
    def answers(concurrency: int, seed: int) -> dict[str, str]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        result = collect(n=3, samples=3, temperature=1.0, seed=seed, max_tokens=16, concurrency=concurrency)
        assert result.n_answered == 9
        return {record["prompt_id"]: record["answer"] for record in records()}

    first = answers(8, seed=0)
    assert len(set(first.values())) == 9
    bases = {name for name in first if name[-3:] not in ("-s2", "-s3")}
    assert first.keys() == {f"{base}{suffix}" for base in bases for suffix in ("", "-s2", "-s3")}
    assert answers(2, seed=0) == first
    assert not set(answers(8, seed=1).values()) & set(first.values())


def test_sampling_is_part_of_the_key(collect: Collect, records: Records) -> None:
    for settings in ({"temperature": 0.0}, {"temperature": 0.5}, {"temperature": 0.5, "seed": 1}):
        assert collect(n=2, max_tokens=4, **settings).n_new == 2
    assert collect(n=2, max_tokens=4, samples=2, temperature=0.5).n_new == 2
    assert collect(n=2, max_tokens=4, temperature=0.0, seed=5).n_new == 0
    assert len({record["key"] for record in records()}) == 8


def test_self_is_the_student_with_a_context(
    tiny_student: Path, collect: Collect, records: Records, tmp_path: Path
) -> None:
    shots = (Message("user", "Prompt 7"), Message("assistant", "Seven."))
    write_jsonl(tmp_path / "shots.jsonl", [{"messages": [message.to_json() for message in shots]}])
    context = ContextConfig("Be brief.", tmp_path / "shots.jsonl")
    collect(n=2, teacher="self", model=tiny_student, teacher_context=context, temperature=0.0, max_tokens=8)

    student = load_student(tiny_student)
    for record in map(TeacherRecord.from_json, records()):
        assert record.teacher == f"self:{tiny_student.name}"
        assert [message.content for message in record.messages[:3]] == ["Be brief.", "Prompt 7", "Seven."]
        assert record.turns == (Message("user", record.prompt_text),)
        assert record.answer == one_by_one(student, record)[0]


def test_thought_that_the_template_opens_is_in_the_answer(
    tiny_student: Path, tmp_path: Path, collect: Collect, records: Records
) -> None:
    folder = tmp_path / "thinking"
    shutil.copytree(tiny_student, folder)
    edit_json(folder / "tokenizer_config.json", chat_template=OPENING)
    collect(n=1, teacher=f"mlx:{folder}", temperature=0.0, max_tokens=4)

    [record] = records()
    assert record["answer"].startswith("<think>\n") and len(record["answer"]) > len("<think>\n")


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (lambda folder: shutil.rmtree(folder), MissingError, "no such folder"),
        (lambda folder: (folder / "config.json").unlink(), MissingError, "not a model folder"),
        (lambda folder: (folder / "model.safetensors").unlink(), InputError, "no model"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), InputError, "model.safetensors"),
        (
            lambda folder: edit_json(folder / "tokenizer_config.json", chat_template=None),
            InputError,
            "no chat template",
        ),
        (
            lambda folder: edit_json(
                folder / "tokenizer_config.json", chat_template="{% for n in range(9**9) %}{% endfor %}"
            ),
            InputError,
            "chat template",
        ),
    ],
)
def test_folder_that_is_no_chat_model(
    tiny_student: Path,
    tmp_path: Path,
    collect: Collect,
    damage: Callable[[Path], Any],
    error: type[DistillError],
    words: str,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_student, folder)
    damage(folder)

    with pytest.raises(error, match=words):
        collect(n=2, teacher=f"mlx:{folder}")
    assert not (tmp_path / "out" / "teacher_data.jsonl").exists()


def test_self_without_a_student_is_explained() -> None:
    with pytest.raises(InputError, match="no student is named"):
        open_teacher("self")


def test_gpu_error_saves_answers_and_gives_advice(
    tiny_student: Path, collect: Collect, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(BatchGenerator):  # type: ignore[misc]
        def next(self) -> Any:
            if self._counters.generation_tokens > 60:
                raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPU...)")
            return super().next()

    monkeypatch.setattr(mlx_model, "BatchGenerator", Failing)
    with pytest.raises(MachineError, match="ran out of memory") as raised:
        collect(n=20, max_tokens=10, concurrency=4)
    assert "--concurrency" in raised.value.next_step
    assert 4 <= len(records()) < 20


def test_ctrl_c_stops_between_two_steps(
    endless: Path, collect: Collect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(BatchGenerator):  # type: ignore[misc]
        def next(self) -> Any:
            if self._counters.generation_steps == 25:
                os.kill(os.getpid(), signal.SIGINT)
            return super().next()

    monkeypatch.setattr(mlx_model, "BatchGenerator", Interrupting)
    with pytest.raises(Interrupted) as raised:
        collect(n=8, teacher=f"mlx:{endless}", max_tokens=1500, temperature=0.0, concurrency=4)
    assert raised.value.exit_code == 130
    assert not (tmp_path / "out" / "teacher_data.jsonl").exists()


def test_kill_loses_and_repeats_no_answer(endless: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    prompts = [{"id": f"p{number}", "prompt": f"Prompt {number}"} for number in range(24)]
    write_jsonl(folder / "data" / "prompts.jsonl", prompts)
    (folder / "distill.toml").write_text(
        f'name = "demo"\nteacher = "mlx:{endless}"\nstudent = "{endless}"\n'
        "[collect]\nconcurrency = 4\nmax_tokens = 150\ntemperature = 0.0\n"
    )
    journal = folder / "data" / "demo" / "teacher_data.jsonl"

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mlx_distill", "collect", "--json"]
        return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    killed = start()
    while killed.poll() is None and (not journal.exists() or len(journal_of(journal.parent)) < 4):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = journal_of(journal.parent)
    assert 4 <= len(before) < 24

    finished = start()
    out, err = finished.communicate()
    assert finished.returncode == 0, err
    assert json.loads(out)["n_new"] == 24 - len(before)
    after = journal_of(journal.parent)
    assert after[: len(before)] == before
    assert sorted(record["prompt_id"] for record in after) == sorted(prompt["id"] for prompt in prompts)
