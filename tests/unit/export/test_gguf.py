"""`export gguf`: the file reads back to the same weights and tokens, and llama.cpp gives the same answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader

from mlx_distill.errors import InputError, MissingError
from mlx_distill.events import Event, Note, Report, ignore
from mlx_distill.export.config import GgufConfig, GgufResult, Kind
from mlx_distill.export.gguf import run
from mlx_distill.models.gguf.read import convert_gguf, open_gguf
from mlx_distill.models.load import load_student, load_tokenizer
from tests.support.gguf_files import make_tiny_llama
from tests.support.hard_text import COMBINING_TEXTS, CONTROL_TEXT, HARD_TEXTS
from tests.support.llama_cpp import LlamaCpp
from tests.support.tiny import change_weights, edit_json, make_tiny_qwen2, same_weights, weights_of

PROMPT = [1, 70, 300, 12, 45, 399, 2, 8]


def write_gguf(
    model: Path, out: Path, kind: Kind = "F16", report: Report = ignore, *, force: bool = False
) -> GgufResult:
    return run(GgufConfig(model, out, kind, force), report)


@pytest.fixture
def model(tiny_student: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_student, folder)
    return folder


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize(("kind", "dtype"), [("BF16", "bfloat16"), ("F16", "float16"), ("F32", "float32")])
def test_a_file_of_the_same_type_reads_back_bit_for_bit(kind: Any, dtype: str, family: str, tmp_path: Path) -> None:
    model = make_tiny_qwen2(tmp_path / "model", dtype=dtype, tied=family == "llama")
    if family == "llama":
        model = make_tiny_llama(tmp_path / "llama", model)
    written = write_gguf(model, tmp_path / "out.gguf", kind)
    back = tmp_path / "back"
    back.mkdir()
    convert_gguf(written.path, back)
    assert same_weights(back, model)
    assert written.n_tensors == len(weights_of(back))
    assert written.size_bytes == written.path.stat().st_size
    before, after = load_tokenizer(model), load_tokenizer(back)
    for text in [*HARD_TEXTS, *COMBINING_TEXTS, CONTROL_TEXT]:
        assert before.encode(text) == after.encode(text)
    assert before.chat_template == after.chat_template
    assert (before.eos_token_ids, before.pad_token_id) == (after.eos_token_ids, after.pad_token_id)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 1e-4), ("BF16", 0.2), ("F16", 0.2), ("Q8_0", 1.0)])
def test_llama_cpp_reads_the_file_and_predicts_the_same(
    kind: Any, tolerance: float, family: str, tiny_student: Path, tmp_path: Path
) -> None:
    model = tiny_student if family == "qwen2" else make_tiny_llama(tmp_path / "llama", tiny_student)
    reference = LlamaCpp(write_gguf(model, tmp_path / "out.gguf", kind).path)
    student = load_student(model, dtype=mx.float32)
    scores = student.model(mx.array([PROMPT]))[0, -1]
    ours = np.array(scores - mx.logsumexp(scores))
    likeliest = reference.next_logprobs(PROMPT, 5)
    for token, logprob in likeliest.items():
        assert ours[token] == pytest.approx(logprob, abs=tolerance)
    for text in [*HARD_TEXTS, CONTROL_TEXT]:
        assert reference.tokens(text) == student.tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.sample
def test_an_exported_sample_answers_in_llama_cpp_and_stops(sample_student: Path, tmp_path: Path) -> None:
    reference = LlamaCpp(write_gguf(sample_student, tmp_path / "sample.gguf", "Q8_0").path)
    answer = reference.chat([{"role": "user", "content": "Say hello in one short sentence."}], max_tokens=60)
    assert answer["message"]["content"].strip()
    assert "<|im" not in answer["message"]["content"]
    assert answer["finish_reason"] == "stop"


def test_rows_not_a_multiple_of_32_stay_f16_with_a_note(tmp_path: Path) -> None:
    events: list[Event] = []
    model = make_tiny_qwen2(tmp_path / "model", hidden=48)
    path = write_gguf(model, tmp_path / "out.gguf", "Q8_0", events.append).path
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert (types["blk.0.ffn_up.weight"], types["blk.0.ffn_down.weight"]) == ("F16", "Q8_0")
    assert [event.text for event in events if isinstance(event, Note)] == [
        "13 matrices have rows that are not a multiple of 32 and stay F16."
    ]


def test_embedding_rows_without_a_token_become_unused(model: Path, tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    change_weights(model, {name: mx.concatenate([weights_of(model)[name], mx.ones((8, 64))])})
    edit_json(model / "config.json", vocab_size=408)
    path = write_gguf(model, tmp_path / "out.gguf").path
    assert LlamaCpp(path).tokens("[PAD405] a") == load_tokenizer(model).encode("[PAD405] a")
    back = tmp_path / "back"
    back.mkdir()
    convert_gguf(path, back)
    assert weights_of(back)["model.embed_tokens.weight"].shape == (408, 64)


def test_linear_rope_scaling_is_kept(model: Path, tmp_path: Path) -> None:
    edit_json(model / "config.json", rope_scaling={"rope_type": "linear", "factor": 2.0})
    back = tmp_path / "back"
    back.mkdir()
    convert_gguf(write_gguf(model, tmp_path / "out.gguf").path, back)
    assert json.loads((back / "config.json").read_text())["rope_scaling"] == {"type": "linear", "factor": 2.0}


def test_a_separate_template_file_is_exported(model: Path, tmp_path: Path) -> None:
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "chat_template.jinja").write_text(settings.pop("chat_template"))
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    path = write_gguf(model, tmp_path / "out.gguf").path
    assert "<|im_start|>" in open_gguf(path).metadata["tokenizer.chat_template"]


def odd_weights(model: Path) -> None:
    names = ("q_proj.bias", "rotary.inv_freq")
    changes = {
        f"model.layers.0.self_attn.{name}": value for name, value in zip(names, (None, mx.ones((8,))), strict=True)
    }
    change_weights(model, changes)


def change_tokenizer(model: Path, change: Callable[[Any], Any]) -> None:
    data = json.loads((model / "tokenizer.json").read_text())
    change(data)
    (model / "tokenizer.json").write_text(json.dumps(data))


def greedy_token(data: Any) -> None:
    data["added_tokens"][1]["lstrip"] = True


def other_pattern(data: Any) -> None:
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\s+"}


REFUSED: list[tuple[Callable[[Path], Any], str]] = [
    (lambda m: edit_json(m / "config.json", model_type="gemma3"), "'gemma3' cannot be written as GGUF"),
    (lambda m: edit_json(m / "config.json", quantization={"bits": 4, "group_size": 64}), "weights are quantised"),
    (
        lambda m: edit_json(m / "config.json", rope_scaling={"rope_type": "yarn", "factor": 4.0}),
        "rope scaling of type 'yarn' is not supported",
    ),
    (odd_weights, "tensor model.layers.0.self_attn.rotary.inv_freq does not belong"),
    (odd_weights, "tensor model.layers.0.self_attn.q_proj.bias is missing"),
    (
        lambda m: change_weights(m, {"model.layers.0.mlp.up_proj.weight": mx.full((128, 64), 1e6)}),
        "holds NaN, or values beyond F16",
    ),
    (lambda m: change_tokenizer(m, other_pattern), "splits text in a way that has no known name (qwen2, smollm have)"),
    (
        lambda m: change_tokenizer(m, greedy_token),
        "takes in the space around it",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_what_gguf_cannot_hold_is_refused_leaving_nothing(
    change: Callable[[Path], Any], message: str, model: Path, tmp_path: Path
) -> None:
    change(model)
    with pytest.raises(InputError) as caught:
        write_gguf(model, tmp_path / "out" / "out.gguf")
    assert message in str(caught.value)
    assert not list((tmp_path / "out").glob("*")) + list((tmp_path / "out").glob(".*"))


def test_a_model_without_tokenizer_json_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").unlink()
    with pytest.raises(MissingError, match=r"tokenizer\.json is missing"):
        write_gguf(model, tmp_path / "out.gguf")


def test_an_existing_file_needs_force(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        write_gguf(model, out)
    assert out.read_text() == "mine"
    write_gguf(model, out, force=True)
    assert out.read_bytes()[:4] == b"GGUF"
