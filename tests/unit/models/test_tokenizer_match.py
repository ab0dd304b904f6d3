"""A teacher's probabilities are used only if both tokenizers agree; the first difference is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.errors import InputError
from mlx_distill.models.load import load_tokenizer
from mlx_distill.models.tokenizer_match import (
    check_same_tokenizer,
    shared_vocabulary,
    template_digest,
    tokenizer_digest,
)
from tests.support.tiny import CHAT_TEMPLATE, edit_json

Edit = Callable[[Path], None]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json")


def tokenizer_only(student: Path, folder: Path) -> Path:
    """Copy a model folder without its weights."""
    folder.mkdir()
    for name in TOKENIZER_FILES:
        shutil.copy(student / name, folder / name)
    return folder


def in_tokenizer(change: Callable[[dict[str, Any]], None]) -> Edit:
    def edit(folder: Path) -> None:
        file = folder / "tokenizer.json"
        data = json.loads(file.read_text())
        change(data)
        file.write_text(json.dumps(data))

    return edit


def swap_entries(data: dict[str, Any]) -> None:
    vocabulary = data["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def drop_last_entry(data: dict[str, Any]) -> None:
    vocabulary = data["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    del vocabulary[last]
    data["model"]["merges"] = [pair for pair in data["model"]["merges"] if "".join(pair) != last]


def swap_merges(data: dict[str, Any]) -> None:
    merges = data["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def add_token(text: str, *, special: bool) -> Edit:
    def change(data: dict[str, Any]) -> None:
        number = 1 + max([*data["model"]["vocab"].values(), *(token["id"] for token in data["added_tokens"])])
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
        data["added_tokens"].append({"id": number, "content": text, **flags})

    return in_tokenizer(change)


def rename_control_token(data: dict[str, Any]) -> None:
    data["added_tokens"][1]["content"] = "<|turn|>"
    vocabulary = data["model"]["vocab"]
    vocabulary["<|turn|>"] = vocabulary.pop("<|im_start|>")


def make_entry_atomic(data: dict[str, Any]) -> None:
    number = data["model"]["vocab"]["re"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    data["added_tokens"].append({"id": number, "content": "re", **flags})


def drop_normalizer(data: dict[str, Any]) -> None:
    data["normalizer"] = None


def end_with_text_end(folder: Path) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=0)
    edit_json(folder / "config.json", eos_token_id=0)
    edit_json(folder / "tokenizer_config.json", eos_token="<|endoftext|>")


def template(old: str, new: str) -> Edit:
    assert old in CHAT_TEMPLATE
    return lambda folder: edit_json(folder / "tokenizer_config.json", chat_template=CHAT_TEMPLATE.replace(old, new))


def in_plain_tokenizer(change: Callable[[dict[str, Any]], None]) -> Edit:
    """Qwen2's tokenizer class ignores how its file splits text; other classes do not."""

    def edit(folder: Path) -> None:
        in_tokenizer(change)(folder)
        edit_json(folder / "config.json", model_type="llama")

    return edit


def split_by_spaces(data: dict[str, Any]) -> None:
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\s+|\S+"}


WRONG: dict[str, tuple[Edit, str]] = {
    "two entries swapped": (in_tokenizer(swap_entries), r"token 67 is 'b' for the teacher, 'a' for the student"),
    "last entry missing": (in_tokenizer(drop_last_entry), r"token \d+ is missing for the teacher, '\S+' for the"),
    "another added token": (add_token("<think>", special=False), r"is '<think>' for the teacher, missing for the"),
    "another control token": (add_token("<|tool|>", special=True), r"is '<\|tool\|>' for the teacher, missing for"),
    "renamed control token": (in_tokenizer(rename_control_token), r"token 1 is '<\|turn\|>' for the teacher, '<\|im_s"),
    "an entry is one token": (
        in_tokenizer(make_entry_atomic),
        r"'re' \(\d+\) is one token in any text for the teacher",
    ),
    "two merges swapped": (in_tokenizer(swap_merges), r"merge 0 is \[.*\] for the teacher, \[.*\] for the student"),
    "another end token": (end_with_text_end, r"ends an answer with '<\|im_end\|>' \(2\), the teacher with '<\|endof"),
    "another system mark": (
        template(">system", ">note"),
        r"at token 1 of a trial conversation the teacher reads 'note",
    ),
    "two newlines after a turn": (
        template("'\\n' }}{%- endif", "'\\n\\n' }}{%- endif"),
        r"at token \d+ of a trial conv",
    ),
    "no normalisation": (
        in_plain_tokenizer(drop_normalizer),
        r"at token \d+ of a trial conversation the teacher reads",
    ),
    "another splitting": (
        in_plain_tokenizer(split_by_spaces),
        r"at token \d+ of a trial conversation the teacher reads",
    ),
}
"""Changes that make a teacher's tokenizer wrong for the student, and the error."""


@pytest.mark.parametrize("name", WRONG)
def test_wrong_pairs_are_refused_by_name(tiny_student: Path, tmp_path: Path, name: str) -> None:
    change, message = WRONG[name]
    folder = tokenizer_only(tiny_student, tmp_path / "teacher")
    change(folder)
    teacher, student = load_tokenizer(folder), load_tokenizer(tiny_student)
    with pytest.raises(InputError, match=message) as caught:
        check_same_tokenizer(teacher, student)
    assert "objective sft" in caught.value.next_step


def test_equal_tokenizers_pass_without_weights(tiny_student: Path, tmp_path: Path) -> None:
    teacher = load_tokenizer(tokenizer_only(tiny_student, tmp_path / "teacher"))
    student = load_tokenizer(tiny_student)
    check_same_tokenizer(teacher, student)
    assert tokenizer_digest(teacher) == tokenizer_digest(student)
    assert template_digest(teacher) == template_digest(student)


def test_padding_entries_and_padding_token_do_not_count(tiny_student: Path, tmp_path: Path) -> None:
    folder = tokenizer_only(tiny_student, tmp_path / "teacher")
    student = load_tokenizer(tiny_student)
    n_entries = shared_vocabulary(student)
    for number in range(n_entries, n_entries + 3):
        add_token(f"[PAD{number}]", special=False)(folder)
    edit_json(folder / "tokenizer_config.json", pad_token="<|im_start|>")
    teacher = load_tokenizer(folder)
    assert len(teacher.get_vocab()) == n_entries + 3
    check_same_tokenizer(teacher, student)
    check_same_tokenizer(student, teacher)
    assert shared_vocabulary(teacher) == n_entries


def test_wider_heads_are_cut_to_the_tokenizers_ids(tiny_student: Path) -> None:
    student = load_tokenizer(tiny_student)
    n_entries = 1 + max(student.get_vocab().values())
    assert shared_vocabulary(student, n_entries + 128, n_entries) == n_entries
    assert shared_vocabulary(student, n_entries - 1) == n_entries - 1
