"""Adapters: switched on and off over one copy of the weights; broken and hostile folders are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_distill.errors import InputError, MissingError
from mlx_distill.models.adapter import base_of, load_adapter, open_student, read_adapter_config
from mlx_distill.models.load import load_student
from tests.support.adapters import make_adapter
from tests.support.tiny import edit_json

TOKENS = [[1, 70, 300, 12]]


@pytest.fixture
def folder(tiny_student: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny_student, tmp_path / "adapter", moment="best, step 40")


def test_a_disabled_adapter_leaves_the_base_bit_for_bit(tiny_student: Path, folder: Path) -> None:
    tokens = mx.array(TOKENS)
    base = load_student(tiny_student).model(tokens)
    student, adapter = open_student(tiny_student, folder)
    assert adapter is not None and adapter.label == f"{folder} (best, step 40)" and not adapter.is_zero
    adapted = student.model(tokens)
    adapter.enabled = False
    assert mx.array_equal(student.model(tokens), base) and not mx.array_equal(adapted, base)
    adapter.enabled = True
    assert mx.array_equal(student.model(tokens), adapted)


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_an_adapter_to_talk_to_computes_in_the_type_of_the_model(
    tiny_student: Path, tmp_path: Path, kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_DISTILL_DTYPE", dtype)
    folder = make_adapter(tiny_student, tmp_path / "adapter", kind=kind)
    exact = load_student(tiny_student)
    load_adapter(exact, folder)
    student, adapter = open_student(tiny_student, folder)
    assert adapter is not None
    expected = mx.float32 if kind == "dora" else student.dtype
    for layer in adapter.layers.values():
        assert layer.lora_a.dtype == layer.lora_b.dtype == expected
        assert layer(mx.ones((1, base_of(layer).weight.shape[1]), student.dtype)).dtype == student.dtype
    wanted, found = (model.model(mx.array(TOKENS)).astype(mx.float32) for model in (exact, student))
    if expected == mx.float32:
        assert mx.array_equal(found, wanted)
    else:
        difference, size = (float(np.linalg.norm(np.array(values))) for values in (found - wanted, wanted))
        assert 0 < difference < 2**-6 * size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_parameters": None}, "is missing"),
        ({"lora_parameters": {"rank": 10**9, "scale": 1.0, "dropout": 0.0}}, "rank is 1000000000"),
        ({"lora_parameters": {"rank": 8, "scale": float("nan"), "dropout": 0.0}}, "scale is nan"),
        ({"lora_parameters": {"rank": 8, "scale": "x", "dropout": 0.0}}, "scale is 'x'"),
        ({"fine_tune_type": "full"}, "holds all weights of a model"),
    ],
)
def test_a_hostile_adapter_config_is_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    edit_json(folder / "adapter_config.json", **changes)
    with pytest.raises(InputError, match=message):
        read_adapter_config(folder)


def test_advice_quotes_names_from_the_adapter_file(folder: Path) -> None:
    edit_json(folder / "adapter_config.json", fine_tune_type="full", model="x; rm -r y")
    with pytest.raises(InputError) as caught:
        read_adapter_config(folder)
    assert "--model 'x; rm -r y'" in caught.value.next_step
    edit_json(folder / "adapter_config.json", model="x\x1b]0;title\x07")
    with pytest.raises(InputError) as caught:
        read_adapter_config(folder)
    assert caught.value.next_step.isprintable()


def test_the_config_may_begin_with_a_byte_order_mark(tiny_student: Path, folder: Path) -> None:
    file = folder / "adapter_config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert not load_adapter(load_student(tiny_student), folder).is_zero


def test_pipes_in_an_adapter_folder_are_refused(folder: Path) -> None:
    os.mkfifo(folder / "metrics.jsonl")
    with pytest.raises(InputError, match=r"metrics\.jsonl is a pipe"):
        read_adapter_config(folder)


def test_broken_adapter_files_are_named(tiny_student: Path, folder: Path) -> None:
    (folder / "adapters.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="does not fit"):
        load_adapter(load_student(tiny_student), folder)
    (folder / "adapters.safetensors").unlink()
    with pytest.raises(MissingError, match=r"adapters\.safetensors is missing"):
        read_adapter_config(folder)
    (folder / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="not valid JSON"):
        read_adapter_config(folder)
    with pytest.raises(MissingError, match="there is no adapter here"):
        read_adapter_config(folder / "nowhere")
