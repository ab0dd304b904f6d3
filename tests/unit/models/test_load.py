"""Loading: broken and hostile model folders get a clear error, and no code from them ever runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_distill.errors import InputError, MissingError
from mlx_distill.models.load import load_student, load_tokenizer, load_weights
from tests.support.tiny import edit_json

EVIL = """
from pathlib import Path
Path(__file__).with_name("evil-ran").write_text("")
class Evil:
    pass
Model = ModelArgs = EvilConfig = Evil
"""


@pytest.fixture
def model(tiny_student: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model with code in it that leaves a file when it runs."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_student, folder)
    (folder / "evil.py").write_text(EVIL)
    return folder


CODE: list[tuple[str, dict[str, Any]]] = [
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["owner/name--evil.Evil", None]}}),
    ("config.json", {"auto_map": {"AutoConfig": "evil.EvilConfig", "AutoTokenizer": "evil.Evil"}}),
    ("config.json", {"model_file": "evil.py"}),
    ("generation_config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
]


@pytest.mark.parametrize("load", [load_student, load_tokenizer, load_weights])
@pytest.mark.parametrize(("name", "settings"), CODE, ids=[f"{name}-{min(settings)}" for name, settings in CODE])
def test_code_from_a_model_folder_never_runs(
    name: str,
    settings: dict[str, Any],
    load: Callable[[Path], Any],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer_yes(_question: str = "") -> str:
        pytest.fail("the user was asked whether to run code")

    monkeypatch.setattr("builtins.input", answer_yes)
    edit_json(model / name, **settings)
    with pytest.raises(InputError, match="never runs such code") as caught:
        load(model)
    assert str(model / name) in caught.value.message
    assert not (model / "evil-ran").exists()


def test_a_custom_tokenizer_class_without_auto_map_asks_nothing(model: Path) -> None:
    edit_json(model / "tokenizer_config.json", tokenizer_class="Evil")
    load_tokenizer(model)
    assert not (model / "evil-ran").exists()


NESTED = "[" * 100_000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", NESTED),
        ("config.json", "\ufeff{}"),
        ("tokenizer_config.json", NESTED),
        ("tokenizer.json", NESTED),
        ("tokenizer.json", '{"decoder": ' + NESTED),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": ["a"]}}'),
        ("tokenizer.json", "{}"),
        ("generation_config.json", NESTED),
    ],
)
def test_a_hostile_json_file_gives_one_line(name: str, text: str, model: Path) -> None:
    (model / name).write_text(text)
    with pytest.raises(InputError) as caught:
        load_student(model)
    assert "\n" not in caught.value.message and len(caught.value.message) < 600


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "other_config.json", "vocab.txt"])
def test_pipes_and_devices_in_a_model_folder_are_refused(name: str, model: Path) -> None:
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    with pytest.raises(InputError, match=f"{name} is a pipe or a device"):
        load_student(model)
    (model / name).unlink()
    (model / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=f"{name} is a pipe or a device"):
        load_tokenizer(model)


def test_json_files_may_begin_with_a_byte_order_mark(model: Path, tiny_student: Path) -> None:
    for file in model.glob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    student, plain = load_student(model), load_student(tiny_student)
    tokens = student.tokenizer.encode("Write a function.")
    assert tokens == plain.tokenizer.encode("Write a function.")
    assert student.tokenizer.eos_token_ids == plain.tokenizer.eos_token_ids
    assert mx.array_equal(student.model(mx.array([tokens])), plain.model(mx.array([tokens])))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"vocab_size": 10**12},
        {"num_attention_heads": 0},
        {"hidden_size": "x"},
        {"model_type": "../evil"},
        {"model_type": None},
    ],
)
def test_a_hostile_config_is_refused(changes: dict[str, Any], model: Path) -> None:
    edit_json(model / "config.json", **changes)
    with pytest.raises(InputError):
        load_student(model)


@pytest.mark.parametrize(
    "settings", [{"tool_parser_type": "evil"}, {"chat_template_type": "evil"}, {"chat_template": None}]
)
def test_a_tokenizer_that_cannot_render_is_refused(settings: dict[str, Any], model: Path) -> None:
    edit_json(model / "tokenizer_config.json", **settings)
    with pytest.raises(InputError, match="tokenizer"):
        load_tokenizer(model)


def header(entry: object) -> bytes:
    text = json.dumps({"weight": entry}).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        (1 << 62).to_bytes(8, "little"),
        (200_000).to_bytes(8, "little") + NESTED.encode() * 2,
        header({"dtype": "F32", "data_offsets": [0, 0]}),
        header({"dtype": "F32", "shape": ["a"], "data_offsets": [0, 0]}),
        header({"dtype": 3, "shape": [0], "data_offsets": [0, 0]}),
        header({"dtype": "F32", "shape": [4], "data_offsets": [0, 10**12]}),
        header("text"),
    ],
)
def test_a_hostile_safetensors_header_is_refused(content: bytes, model: Path) -> None:
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_student(model)


def test_a_torn_weights_file_is_refused(model: Path) -> None:
    os.truncate(model / "model.safetensors", 20_000)
    with pytest.raises(InputError, match="cut off"):
        load_student(model)


def test_a_token_beyond_the_embedding_is_refused(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["beyond"] = 70_000
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(InputError, match="the tokenizer has ids up to 70000, the model"):
        load_student(model)


@pytest.mark.parametrize(("number", "special"), [(70_000, True), (70_000, False), (400, False)])
def test_an_added_token_beyond_the_embedding_is_refused(model: Path, number: int, special: bool) -> None:
    add_token(model, number, special)
    with pytest.raises(InputError, match=f"the tokenizer has ids up to {number}, the model 400"):
        load_student(model, plain_head=False)


def test_a_control_token_right_behind_the_embedding_is_allowed(model: Path) -> None:
    add_token(model, 400, special=True)
    assert load_student(model).tokenizer.get_vocab()["Hello"] == 400


def add_token(model: Path, number: int, special: bool) -> None:
    """Add the token "Hello", as an entry and as an added token: only the entry keeps any number."""
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["Hello"] = number
    added = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append({**added, "id": number, "content": "Hello", "special": special})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def test_missing_files_are_named(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(MissingError, match="no weights"):
        load_student(model)
    (model / "config.json").unlink()
    with pytest.raises(MissingError, match=r"config\.json is missing"):
        load_student(model)
    with pytest.raises(MissingError, match="no model folder"):
        load_student(model / "nowhere")


@pytest.mark.parametrize("text", ["[METAL] Command buffer execution failed: Insufficient Memory", "[malloc] no memory"])
def test_errors_about_memory_are_not_blamed_on_the_file(
    text: str, tiny_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arrays: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(mx, "eval", fail)
    with pytest.raises(RuntimeError, match="emory"):
        load_student(tiny_student)
