"""`fuse`: the sum is exact, the folder is complete, and a result that differs from the adapter is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, quantize_model, save_config, save_model
from transformers import AutoConfig, AutoTokenizer

from mlx_distill.errors import InputError, VerificationError
from mlx_distill.events import Note, ignore
from mlx_distill.fuse import FuseConfig, FuseResult, verify
from mlx_distill.fuse.run import run
from mlx_distill.fuse.weights import round_stochastically, write_fused
from mlx_distill.models.load import load_student
from mlx_distill.models.score import score
from mlx_distill.models.tokenize import render
from mlx_distill.records import Example
from mlx_distill.storage.jsonl import read_jsonl
from tests.support.adapters import make_adapter, write_test_rows
from tests.support.tiny import CHAT_TEMPLATE, change_weights, edit_json, make_tiny_qwen2, weights_of


def make_config(folder: Path, *, bits: int | None = None, size: float = 0.1, **student: Any) -> FuseConfig:
    """Write a base (quantised with `bits`), an adapter and test rows; return the settings to fuse them."""
    base = make_tiny_qwen2(folder / "base", **student)
    if bits:
        base = quantized(base, folder / "quantized", bits)
    adapter = make_adapter(base, folder / "adapter", size=size)
    return FuseConfig(base, adapter, write_test_rows(folder / "data"), folder / "out" / "fused")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> FuseConfig:
    """A bfloat16 base and an adapter that changes it clearly."""
    return make_config(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def fused(parts: FuseConfig) -> FuseResult:
    """The fused parts: read-only."""
    return run(parts)


def with_out(parts: FuseConfig, out: Path, **changes: object) -> FuseConfig:
    return parts.replace(out=out, **changes)


def quantized(base: Path, folder: Path, bits: int = 4) -> Path:
    """A copy of `base` quantised as `mlx_lm.convert -q` does it."""
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    model, config = load_model(base)
    model, config = quantize_model(model, config, group_size=32, bits=bits)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return folder


def sum_of(values: mx.array) -> float:
    total: Any = mx.sum(values).item()
    return float(total)


def deltas(base: Path, adapter: Path) -> dict[str, mx.array]:
    """Weight name to what the adapter adds to it, by the definition: scale * (a @ b) transposed."""
    loaded = mx.load(str(adapter / "adapters.safetensors"))
    assert isinstance(loaded, dict)
    names = [name.removesuffix(".weight") for name in weights_of(base)]
    adapted = [name for name in names if f"{name}.lora_a" in loaded]
    return {f"{name}.weight": 2.0 * (loaded[f"{name}.lora_a"] @ loaded[f"{name}.lora_b"]).T for name in adapted}


def test_each_weight_is_the_float32_sum_rounded_once(parts: FuseConfig, fused: FuseResult) -> None:
    base, result, added = weights_of(parts.model), weights_of(fused.path), deltas(parts.model, parts.adapter)
    assert set(result) == set(base) and len(added) == 14
    for name, value in base.items():
        assert result[name].dtype == mx.bfloat16
        if name not in added:
            assert mx.array_equal(result[name], value), name
            continue
        exact = value.astype(mx.float32) + added[name]
        step = mx.abs(exact) * 2.0**-7  # at most, between neighbours in bfloat16
        assert mx.all(mx.abs(result[name].astype(mx.float32) - exact) <= step), name


def test_a_tiny_update_survives_rounding_on_average(parts: FuseConfig, tmp_path: Path) -> None:
    adapter = make_adapter(parts.model, tmp_path / "small", size=5e-4)
    write_fused(parts.model, adapter, tmp_path)
    base, fused, added = weights_of(parts.model), weights_of(tmp_path), deltas(parts.model, adapter)
    kept = nearest = whole = 0.0
    for name, delta in added.items():
        before = base[name].astype(mx.float32)
        kept += sum_of(delta * (fused[name].astype(mx.float32) - before))
        nearest += sum_of(delta * ((before + delta).astype(mx.bfloat16).astype(mx.float32) - before))
        whole += sum_of(delta * delta)
    assert nearest / whole < 0.9, "the case is one in which rounding to the nearest loses much"
    assert kept / whole == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_rounding_takes_a_neighbour_with_the_right_mean(dtype: mx.Dtype) -> None:
    exact = mx.random.normal((4000,), key=mx.random.key(1)).astype(dtype).astype(mx.float32)
    assert mx.array_equal(round_stochastically(exact, dtype, mx.random.key(2)).astype(mx.float32), exact)
    step = 2.0**-7 if dtype == mx.bfloat16 else 2.0**-10
    for share in (0.1, 0.5, 0.9):
        for sign in (1.0, -1.0):
            values = mx.full((20_000,), sign * (1.0 + share * step))
            rounded = round_stochastically(values, dtype, mx.random.key(3)).astype(mx.float32)
            up = mx.mean((rounded == sign * (1.0 + step)).astype(mx.float32)).item()
            assert mx.all((rounded == sign) | (rounded == sign * (1.0 + step)))
            assert up == pytest.approx(share, abs=0.02)


def test_the_same_base_and_adapter_give_the_same_file(parts: FuseConfig, fused: FuseResult, tmp_path: Path) -> None:
    again = run(with_out(parts, tmp_path / "again"))
    assert (again.path / "model.safetensors").read_bytes() == (fused.path / "model.safetensors").read_bytes()


def test_check_rows_takes_rows_from_all_over_the_file(parts: FuseConfig, tmp_path: Path) -> None:
    result = run(with_out(parts, tmp_path / "fused", check_rows=2))
    assert result.n_rows == 2 and len(result.divergences) == 2
    with pytest.raises(ValueError, match="check_rows"):
        with_out(parts, tmp_path / "fused", check_rows=-1)


def test_the_fused_model_matches_the_adapter(parts: FuseConfig, fused: FuseResult) -> None:
    assert fused.dtype == "bfloat16" and not fused.dequantized and fused.n_layers == 14
    assert abs(fused.fused_loss - fused.adapter_loss) <= fused.allowed_difference
    assert 0 <= fused.kl < 0.02 < fused.kl_base
    assert (fused.n_rows, len(fused.divergences)) == (6, 4)
    student = load_student(fused.path)
    examples = read_jsonl(parts.data / "test.jsonl", Example.from_json)
    scored = score(student, [render(student.tokenizer, example.messages) for example in examples])
    assert fused.fused_loss == pytest.approx(scored.loss, rel=1e-6)
    assert fused.fused_accuracy == pytest.approx(scored.token_accuracy)
    assert fused.n_tokens == scored.n_tokens > 100


def test_a_float32_base_is_fused_exactly(tmp_path: Path) -> None:
    result = run(make_config(tmp_path, dtype="float32"))
    assert result.dtype == "float32"
    assert result.fused_loss == pytest.approx(result.adapter_loss, abs=1e-4)
    assert result.divergences == (None,) * 4


def test_a_dora_adapter_is_fused_as_well(parts: FuseConfig, tmp_path: Path) -> None:
    adapter = make_adapter(parts.model, tmp_path / "dora", kind="dora")
    result = run(with_out(parts, tmp_path / "fused", adapter=adapter))
    assert result.kl < 0.05 * result.kl_base
    assert "a DoRA adapter added" in (tmp_path / "fused" / "README.md").read_text()


def test_a_quantised_base_is_dequantised(tmp_path: Path) -> None:
    config = make_config(tmp_path, bits=4, size=0.01, dtype="float32")
    notes: list[str] = []
    result = run(config, lambda event: notes.append(event.text) if isinstance(event, Note) else None)
    assert result.dequantized and any("dequantised" in note for note in notes)
    assert result.kl < 0.01 * result.kl_base
    assert "quantization" not in json.loads((config.out / "config.json").read_text())
    # The same sum quantised again, as mlx-lm's fuse would write it, has lost the adapter: it is refused.
    with pytest.raises(VerificationError, match="does not do what the adapter does") as caught:
        run(config.replace(out=tmp_path / "again", q_bits=4, q_group_size=32))
    assert "without --q-bits" in caught.value.next_step
    assert any("KL(adapter || fused)" in problem for problem in caught.value.problems)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("group_size", [32, 64])
def test_q_bits_quantises_the_float32_sum(parts: FuseConfig, tmp_path: Path, group_size: int) -> None:
    out = tmp_path / "fused"
    result = run(with_out(parts, out, q_bits=8, q_group_size=group_size))
    gained = abs(result.base_loss - result.adapter_loss)
    assert (result.q_bits, result.dtype, result.dequantized) == (8, "bfloat16", False)
    assert result.allowed_difference == pytest.approx(0.1 * gained) and result.allowed_difference > 1e-4
    assert abs(result.fused_loss - result.adapter_loss) <= result.allowed_difference
    config = json.loads((out / "config.json").read_text())
    assert config["quantization"] == {"group_size": group_size, "bits": 8, "mode": "affine"}
    assert config["quantization_config"] == config["quantization"]
    base, fused, added = weights_of(parts.model), weights_of(out), deltas(parts.model, parts.adapter)
    for name, delta in added.items():
        exact = base[name].astype(mx.float32) + delta
        packed, scales, biases = mx.quantize(exact, group_size, 8)
        stem = name.removesuffix("weight")
        assert mx.array_equal(fused[name], packed), name
        assert mx.array_equal(fused[f"{stem}scales"], scales.astype(mx.bfloat16))
        assert mx.array_equal(fused[f"{stem}biases"], biases.astype(mx.bfloat16))
    norm = "model.norm.weight"
    assert fused[norm].dtype == mx.bfloat16 and mx.array_equal(fused[norm], base[norm])
    assert dict(tree_flatten(mlx_lm.load(str(out))[0].parameters())).keys() == fused.keys()
    assert "quantised to 8 bits" in (out / "README.md").read_text()


def test_a_4_bit_base_can_become_an_8_bit_model(tmp_path: Path) -> None:
    result = run(make_config(tmp_path, bits=4, dtype="float32").replace(q_bits=8, q_group_size=32))
    assert result.dequantized and result.q_bits == 8
    assert json.loads((result.path / "config.json").read_text())["quantization"]["bits"] == 8


def test_rows_that_no_group_fits_cannot_be_quantised(tmp_path: Path) -> None:
    config = make_config(tmp_path, hidden=48).replace(q_bits=4, q_group_size=64)
    with pytest.raises(InputError, match="nothing can be quantised"):
        run(config)
    assert not config.out.exists()


@pytest.mark.parametrize("mode", ["base", "noise", "nan"])
def test_a_tampered_fuse_is_caught(parts: FuseConfig, tmp_path: Path, mode: str) -> None:
    run(with_out(parts, tmp_path / "fused"))
    name = "model.layers.0.mlp.down_proj.weight"
    down = weights_of(tmp_path / "fused")[name]
    noise = mx.random.normal(down.shape, key=mx.random.key(5)).astype(mx.bfloat16)
    change_weights(
        tmp_path / "fused",
        {"base": weights_of(parts.model), "noise": {name: down + noise}, "nan": {name: down * float("nan")}}[mode],
    )
    examples = read_jsonl(parts.data / "test.jsonl", Example.from_json)
    with pytest.raises(VerificationError) as caught:
        verify.check_fused(tmp_path / "fused", parts.model, parts.adapter, examples, ignore)
    assert caught.value.problems


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_small_gain_passes_on_a_bfloat16_machine(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are compared in the files' own type: rounding them to bfloat16 costs more than this adapter gains."""
    monkeypatch.setenv("MLX_DISTILL_DTYPE", "bfloat16")
    result = run(make_config(tmp_path, dtype=dtype, size=0.005))
    assert result.kl_base > 0 and result.kl < 0.02 * result.kl_base


def test_an_adapter_without_gain_is_fused(parts: FuseConfig, tmp_path: Path) -> None:
    adapter = make_adapter(parts.model, tmp_path / "zero", size=0.0)
    result = run(with_out(parts, tmp_path / "fused", adapter=adapter))
    assert result.base_loss == result.adapter_loss == pytest.approx(result.fused_loss, abs=1e-4)
    assert result.kl_base == 0


def test_an_update_below_the_rounding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="nothing was written") as caught:
        run(make_config(tmp_path, size=1e-4))
    assert any("KL(adapter || fused)" in problem for problem in caught.value.problems)
    assert not (tmp_path / "out").exists()


def test_the_folder_loads_in_mlx_lm_and_transformers(parts: FuseConfig, fused: FuseResult) -> None:
    out = fused.path
    model, tokenizer = mlx_lm.load(str(out))
    assert dict(tree_flatten(model.parameters())).keys() == weights_of(out).keys()
    assert AutoConfig.from_pretrained(out).tie_word_embeddings is True
    messages = [{"role": "user", "content": "Hello 你好 🙂"}]
    kept = AutoTokenizer.from_pretrained(out).apply_chat_template(messages, tokenize=False)
    assert kept == AutoTokenizer.from_pretrained(parts.model).apply_chat_template(messages, tokenize=False)
    assert tokenizer.eos_token_ids == {0, 2}
    template = json.loads((out / "tokenizer_config.json").read_text())["chat_template"]
    assert (out / "chat_template.jinja").read_text() == template
    assert (out / "generation_config.json").read_bytes() == (parts.model / "generation_config.json").read_bytes()
    assert not list(out.glob(".*"))


def test_untied_heads_and_template_files_are_kept(tmp_path: Path) -> None:
    config = make_config(tmp_path, tied=False, dtype="float32")
    edit_json(config.model / "tokenizer_config.json", chat_template=None)
    (config.model / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    run(config)
    assert "lm_head.weight" in weights_of(config.out)
    assert json.loads((config.out / "tokenizer_config.json").read_text())["chat_template"] == CHAT_TEMPLATE


REACHED = {"best_step": 9, "steps": 9, "epochs": 0.53}
"""A training that a time budget ended early."""


def test_the_card_names_teacher_settings_and_scores(parts: FuseConfig, tmp_path: Path) -> None:
    data, adapter = tmp_path / "data", tmp_path / "adapter"
    shutil.copytree(parts.data, data)
    shutil.copytree(parts.adapter, adapter)
    record = {"messages": [{"role": "user", "content": "Hi"}], "answer": "Hello.", "model": "claude-sonnet-4-6"}
    (data / "teacher_data.jsonl").write_text(json.dumps(record) + "\n")
    (adapter / "run.json").write_text(json.dumps({"settings": {"epochs": 3, "rank": 8}, "result": REACHED}))
    result = run(with_out(parts, tmp_path / "fused", data=data, adapter=adapter))
    card = (tmp_path / "fused" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mlx\n")
    assert "Teacher: claude-sonnet-4-6" in card and "best step 9 of 9, epochs done 0.53, epochs 3, rank 8" in card
    assert f"| this model | {result.fused_loss:.3f} |" in card


def test_an_input_folder_is_never_replaced(parts: FuseConfig) -> None:
    for folder in (parts.model, parts.adapter, parts.data, parts.model.parent):
        with pytest.raises(InputError, match="cannot replace"):
            run(with_out(parts, folder, force=True))
