"""A local teacher scores the student's own tokens, in its context, without a gradient and without the adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import pytest

from mlx_distill.errors import InputError, MachineError, MissingError
from mlx_distill.models.context import TeacherContext
from mlx_distill.models.load import Student, load_student
from mlx_distill.models.local_teacher import LocalTeacher, check_memory, check_teacher, open_local_teacher
from mlx_distill.models.score import pad
from mlx_distill.models.tokenize import TokenizedChat, render, render_prompt
from mlx_distill.records import Message, Messages
from mlx_distill.train import TrainConfig
from mlx_distill.train.lora import make_trainable
from tests.support.tiny import change_weights, edit_json, make_tiny_qwen2, weights_of
from tests.support.training import quantized

CONTEXT = TeacherContext("Answer in rhyme.", (Message("user", "Why?"), Message("assistant", "So.")))


def messages_of(number: int) -> Messages:
    return (
        Message("system", "You are a helpful assistant."),
        Message("user", f"Question {number}?"),
        Message("assistant", "def f(x):\n    return x\n" * (1 + number % 3)),
        Message("user", "And then?"),
        Message("assistant", "first last " * (number + 1)),
    )


CHATS = [messages_of(number) for number in range(4)]


@pytest.fixture
def student(tiny_student: Path) -> Student:
    return load_student(tiny_student)


@pytest.fixture
def teacher(tmp_path: Path, tiny_student: Path) -> LocalTeacher:
    folder = make_tiny_qwen2(tmp_path / "teacher", seed=8, hidden=128)
    return open_local_teacher(f"mlx:{folder}", tiny_student, CONTEXT)


def supervised(chat: TokenizedChat) -> list[int]:
    return [token for token, counts in zip(chat.tokens, chat.mask, strict=True) if counts]


def rows_of(teacher: LocalTeacher, student: Student, document: str = "") -> list[TokenizedChat]:
    return [teacher.view(render(student.tokenizer, chat), chat, document) for chat in CHATS]


def reference(model: Student, row: TokenizedChat, vocabulary: int) -> mx.array:
    """Log-probabilities (n, V) of each supervised token, from all logits of one unpadded row."""
    logits = model.model(mx.array([row.tokens]))[0].astype(mx.float32)[:, :vocabulary]
    every = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    places = mx.array([index - 1 for index, counts in enumerate(row.mask) if counts])
    rows: mx.array = every[places]
    return rows


def test_a_view_adds_the_context_before_the_first_answer_only(teacher: LocalTeacher, student: Student) -> None:
    for chat, seen in zip(CHATS, rows_of(teacher, student, "A document."), strict=True):
        own = render(student.tokenizer, chat)
        text = student.tokenizer.decode(list(seen.tokens))
        assert supervised(seen) == supervised(own)
        assert text.count("Answer in rhyme.") == text.count("Why?") == text.count("A document.") == 1
        assert "You are a helpful assistant." not in text
        n_prompt = own.mask.index(True)
        assert seen.tokens[seen.mask.index(True) :] == own.tokens[n_prompt:]
        assert seen.mask[seen.mask.index(True) :] == own.mask[n_prompt:]


def test_without_a_context_the_view_is_the_students_row(tiny_student: Path, student: Student) -> None:
    teacher = open_local_teacher("self", student, TeacherContext())
    assert teacher.model is student
    assert rows_of(teacher, student) == [render(student.tokenizer, chat) for chat in CHATS]


def test_answer_tokens_are_never_tokenized_again(teacher: LocalTeacher, student: Student) -> None:
    """A rollout may split a text as no tokenizer would: one byte a token."""
    prompt = CHATS[0][:2]
    before = render_prompt(student.tokenizer, prompt)
    letters = [student.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "return"]
    assert len(student.tokenizer.encode("return", add_special_tokens=False)) < len(letters)
    rollout = TokenizedChat((*before, *letters), (*([False] * len(before)), *([True] * len(letters))))
    seen = teacher.view(rollout, prompt)
    assert supervised(seen) == letters
    assert len(seen.tokens) > len(rollout.tokens)


def test_masked_tokens_of_an_answer_stay_in_view(teacher: LocalTeacher, student: Student) -> None:
    own = render(student.tokenizer, CHATS[0])
    first = own.mask.index(True)
    masked = TokenizedChat(own.tokens, tuple(counts and index > first + 3 for index, counts in enumerate(own.mask)))
    seen = teacher.view(masked, CHATS[0])
    n_prompt = len(seen.tokens) - len(own.tokens) + first
    assert seen.tokens[n_prompt:] == own.tokens[first:]
    assert supervised(seen) == supervised(own)[4:]


def test_tokens_of_another_prompt_are_refused(teacher: LocalTeacher, student: Student) -> None:
    with pytest.raises(InputError, match="not those of the prompt"):
        teacher.view(render(student.tokenizer, CHATS[0]), CHATS[1])


def test_hidden_states_and_top_k_equal_a_plain_reference(teacher: LocalTeacher, student: Student) -> None:
    rows = rows_of(teacher, student)
    every = teacher.head(teacher.hidden(rows))
    every = every - mx.logsumexp(every, axis=-1, keepdims=True)
    ids, log_probs = teacher.top_log_probs(pad(rows), 5)
    start = 0
    for row in rows:
        expected = np.array(reference(teacher.model, row, teacher.vocabulary))
        place = slice(start, start + len(expected))
        np.testing.assert_allclose(np.array(every[place]), expected, atol=2e-5)
        order = np.argsort(-expected, axis=-1, kind="stable")[:, :5]
        np.testing.assert_allclose(log_probs[place], np.take_along_axis(expected, order, -1), atol=2e-5)
        np.testing.assert_allclose(np.take_along_axis(expected, np.array(ids[place]), -1), log_probs[place], atol=2e-5)
        start += len(expected)
    assert start == len(ids)


def test_more_than_all_tokens_are_all_tokens(teacher: LocalTeacher, student: Student) -> None:
    ids, log_probs = teacher.top_log_probs(pad(rows_of(teacher, student)[:1]), 10_000)
    assert ids.shape[1] == teacher.vocabulary
    np.testing.assert_allclose(mx.exp(log_probs).sum(axis=-1), 1.0, atol=1e-5)


def test_padding_of_a_wider_head_has_no_probability(tmp_path: Path, tiny_student: Path, student: Student) -> None:
    wide = tmp_path / "wide"
    shutil.copytree(tiny_student, wide)
    embedding = weights_of(wide)["model.embed_tokens.weight"]
    padding = mx.ones((128, embedding.shape[1]), dtype=embedding.dtype) * 9
    change_weights(wide, {"model.embed_tokens.weight": mx.concatenate([embedding, padding])})
    edit_json(wide / "config.json", vocab_size=embedding.shape[0] + 128)
    narrow, wider = (open_local_teacher(f"mlx:{folder}", tiny_student, CONTEXT) for folder in (tiny_student, wide))
    assert wider.vocabulary == narrow.vocabulary == embedding.shape[0]
    batch = pad(rows_of(narrow, student))
    for one, other in zip(narrow.top_log_probs(batch, 8), wider.top_log_probs(batch, 8), strict=True):
        assert mx.array_equal(one, other)
    # and a student wider than its teacher
    assert open_local_teacher(f"mlx:{tiny_student}", wide, CONTEXT).vocabulary == narrow.vocabulary


def test_a_head_in_16_bits_computes_in_float32(tiny_student: Path, student: Student) -> None:
    half = LocalTeacher("self", load_student(tiny_student, dtype=mx.bfloat16), CONTEXT, 400)
    hidden = half.hidden(rows_of(half, student))
    weight = half.model.model.model.embed_tokens.weight.astype(mx.float32)
    assert half.head(hidden).dtype == mx.float32
    np.testing.assert_allclose(half.head(hidden), hidden.astype(mx.float32) @ weight.T, rtol=1e-5, atol=1e-5)


def test_a_4_bit_teacher_works(tiny_student: Path, tmp_path: Path, student: Student) -> None:
    teacher = open_local_teacher(f"mlx:{quantized(tiny_student, tmp_path / 'q')}", tiny_student, CONTEXT)
    rows = rows_of(teacher, student)
    assert teacher.model.quantized
    ids, log_probs = teacher.top_log_probs(pad(rows), 3)
    expected = mx.concatenate([reference(teacher.model, row, 400) for row in rows])
    np.testing.assert_allclose(mx.take_along_axis(expected, ids, -1), log_probs, atol=2e-5)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_self_computes_without_the_adapter_in_training(
    tiny_student: Path, student: Student, method: Literal["lora", "dora"]
) -> None:
    teacher = open_local_teacher("self", student, CONTEXT)
    before = np.array(teacher.hidden(rows_of(teacher, student)))
    config = TrainConfig(
        model=tiny_student,
        data=Path(),
        adapter=Path("a"),
        method=method,
        dropout=0.5,
    )
    make_trainable(student, config)
    for module in student.model.modules():
        if "lora_b" in module:
            module.lora_b = mx.ones_like(module.lora_b)
    student.model.train()
    own = [render(student.tokenizer, chat) for chat in CHATS]
    adapted = np.array(student.hidden(pad(own).inputs))
    assert np.array_equal(teacher.hidden(rows_of(teacher, student)), before)
    assert student.model.training and all(module.training for module in student.model.modules())
    assert sum("lora_b" in module for module in student.model.modules()) == 14
    student.model.eval()
    teacher.hidden(rows_of(teacher, student))
    assert not student.model.training
    assert not np.array_equal(student.hidden(pad(own).inputs), np.array(before))
    assert adapted.shape[0] == len(own)


def test_nothing_of_the_teacher_has_a_gradient(teacher: LocalTeacher, student: Student) -> None:
    batch = pad(rows_of(teacher, student))

    def total(weight: mx.array) -> mx.array:
        teacher.model.model.model.norm.weight = weight
        return teacher.hidden_of(batch).sum()

    assert not mx.grad(total)(teacher.model.model.model.norm.weight).any().item()


def test_a_wrong_tokenizer_is_refused_before_weights_are_read(tmp_path: Path, tiny_student: Path) -> None:
    folder = make_tiny_qwen2(tmp_path / "teacher")
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    data = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="different tokenizers: token 67 is 'b' for the teacher"):
        open_local_teacher(f"mlx:{folder}", tiny_student, CONTEXT)


def test_too_little_memory_is_known_before_loading(tiny_student: Path) -> None:
    needed = check_teacher(tiny_student, tiny_student)
    assert needed == check_teacher(tiny_student, tiny_student, 2 * needed)
    with pytest.raises(MachineError, match=r"needs .* for its weights.*\n.*4-bit"):
        check_teacher(tiny_student, tiny_student, needed)
    with pytest.raises(MachineError, match="for the student's"):
        check_memory(tiny_student, student_bytes=needed, usable_bytes=2 * needed)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("anthropic:claude-sonnet-4-6", InputError, "not a model on this machine"),
        ("recorded:sample", InputError, "not a model on this machine"),
        ("mlx:no/such/folder", MissingError, "no such folder, and it is not a Hub id"),
        ("mlx:", MissingError, "no such folder, and it is not a Hub id"),
        ("mlx:owner/name", MachineError, "the Hub cannot be reached"),
    ],
)
def test_other_teachers_are_explained(tiny_student: Path, spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_local_teacher(spec, tiny_student, CONTEXT)


def test_code_and_broken_weights_of_a_teacher_are_refused(tmp_path: Path, tiny_student: Path) -> None:
    folder = make_tiny_qwen2(tmp_path / "teacher")
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        open_local_teacher(f"mlx:{folder}", tiny_student, CONTEXT)
    edit_json(folder / "config.json", model_file="evil.py")
    with pytest.raises(InputError, match="never runs such code"):
        open_local_teacher(f"mlx:{folder}", tiny_student, CONTEXT)


def test_an_endless_chat_template_is_refused(tmp_path: Path, tiny_student: Path) -> None:
    folder = make_tiny_qwen2(tmp_path / "teacher")
    edit_json(folder / "tokenizer_config.json", chat_template="{{ 'x' * 10**11 }}")
    with pytest.raises(InputError, match="The chat template cannot write a conversation"):
        open_local_teacher(f"mlx:{folder}", tiny_student, CONTEXT)


class CountingStudent(Student):
    """Counts the tokens of its forward passes."""

    n_tokens = 0

    def hidden(self, tokens: mx.array, cache: Any = None) -> mx.array:
        self.n_tokens += tokens.size
        return super().hidden(tokens, cache)


@pytest.mark.parametrize(("tied", "system"), [(True, "Answer in rhyme."), (False, "Answer in rhyme."), (True, "")])
def test_a_long_context_is_computed_once(tmp_path: Path, student: Student, tied: bool, system: str) -> None:
    loaded = load_student(make_tiny_qwen2(tmp_path / "m", seed=8, tied=tied, dtype="float32"), dtype=mx.float32)
    counting = CountingStudent(loaded.path, loaded.model, loaded.tokenizer, loaded.config, loaded.dtype)
    shots = tuple(turn for number in range(3) for turn in messages_of(number)[1:])
    teacher = LocalTeacher("mlx:m", counting, TeacherContext(system, shots), 400)
    rows = rows_of(teacher, student) + rows_of(teacher, student, "A document.")
    rows = [
        TokenizedChat(row.tokens[: len(row.tokens) - n], row.mask[: len(row.mask) - n]) for n, row in enumerate(rows)
    ]
    found = teacher.hidden(rows)
    n_context = len(render_prompt(student.tokenizer, (Message("system", system), *shots))) - 20
    assert n_context > 200
    assert counting.n_tokens < pad(rows).inputs.size - (len(rows) - 1) * n_context
    expected = [loaded.hidden(mx.array([row.tokens]))[0][row.mask.index(True) - 1 : -1] for row in rows]
    masks = [mx.array(np.flatnonzero(row.mask[row.mask.index(True) :])) for row in rows]
    plain = mx.concatenate([states[mask] for states, mask in zip(expected, masks, strict=True)])
    np.testing.assert_allclose(found, plain, atol=1e-4)
    assert np.array_equal(teacher.hidden(rows), found)


def test_rows_without_the_context_are_not_cut(teacher: LocalTeacher, student: Student) -> None:
    long = LocalTeacher("mlx:m", teacher.model, TeacherContext("", CHATS[2][1:] * 2), teacher.vocabulary)
    rows = [render(student.tokenizer, chat) for chat in CHATS]
    bare = LocalTeacher("mlx:m", teacher.model, TeacherContext(), teacher.vocabulary)
    assert np.array_equal(long.hidden(rows), bare.hidden(rows))
