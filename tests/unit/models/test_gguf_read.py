"""GGUF files become models with the same tokens and logits as the original, or a refusal names the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants

from mlx_distill.convert.sources import sample_file
from mlx_distill.errors import InputError
from mlx_distill.models.gguf import read
from mlx_distill.models.gguf.read import convert_gguf
from mlx_distill.models.load import load_student, load_tokenizer
from tests.support.gguf_files import make_tiny_llama, model_metadata, model_tensors, write_gguf
from tests.support.hard_text import COMBINING_TEXTS, CONTROL_TEXT, HARD_TEXTS
from tests.support.llama_cpp import LlamaCpp
from tests.support.tiny import make_tiny_qwen2, weights_of

PROMPT = [1, 70, 300, 12, 45, 399, 2, 8]


@pytest.fixture(scope="module")
def tiny_gguf(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tiny_student, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def converted(tmp_path: Path) -> Callable[[Path], Path]:
    def convert(path: Path) -> Path:
        folder = tmp_path / "converted"
        folder.mkdir()
        convert_gguf(path, folder)
        return folder

    return convert


def logits(folder: Path, dtype: str = "float32") -> Any:
    student = load_student(folder, dtype=getattr(mx, dtype))
    return np.array(student.model(mx.array([PROMPT])).astype(mx.float32))[0]


@pytest.mark.sample
def test_the_sample_is_read_as_llama_cpp_reads_it(sample_student: Path) -> None:
    student, reference = load_student(sample_student), LlamaCpp(sample_file())
    tokenizer = student.tokenizer
    for text in [*HARD_TEXTS, *COMBINING_TEXTS, CONTROL_TEXT]:
        assert tokenizer.encode(text, add_special_tokens=False) == reference.tokens(text), text
    assert tokenizer.encode("\n    return", add_special_tokens=False)[0] == tokenizer.vocab["ĊĠĠĠ"]
    prompt = tokenizer.encode("The capital of France is", add_special_tokens=False)
    scores = student.model(mx.array([prompt]))[0, -1].astype(mx.float32)
    ours = np.array(scores - mx.logsumexp(scores))
    for token, logprob in reference.next_logprobs(prompt, 5).items():
        assert ours[token] == pytest.approx(logprob, abs=0.5)  # llama.cpp rounds activations to 8 bits


@pytest.mark.sample
def test_a_large_tensor_is_dequantised_in_chunks(sample_student: Path) -> None:
    tensor = next(tensor for tensor in GGUFReader(sample_file()).tensors if tensor.name == "token_embd.weight")
    expected = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float16)
    embedding = weights_of(sample_student)["model.embed_tokens.weight"]
    assert np.array_equal(np.array(embedding), expected)


def test_tokens_equal_those_of_the_original_tokenizer(
    tiny_student: Path, tiny_gguf: Path, converted: Callable[[Path], Path]
) -> None:
    ours, original = load_tokenizer(converted(tiny_gguf)), load_tokenizer(tiny_student)
    for text in [*HARD_TEXTS, *COMBINING_TEXTS, CONTROL_TEXT]:
        tokens = original.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False) == tokens, text
        assert ours.decode(tokens) == original.decode(tokens)
    chat = [{"role": "user", "content": "Hi"}]
    assert ours.apply_chat_template(chat, tokenize=False) == original.apply_chat_template(chat, tokenize=False)
    assert ours.eos_token_ids == {2}


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16")])
def test_logits_equal_those_of_the_original(
    kind: str, dtype: str, tmp_path: Path, converted: Callable[[Path], Path]
) -> None:
    original = make_tiny_qwen2(tmp_path / "original", dtype=dtype, tied=kind == "F16")
    folder = converted(write_gguf(original, tmp_path / "tiny.gguf", kind))
    assert np.array_equal(logits(folder), logits(original))
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == dtype


def test_rotary_rows_of_a_llama_file_are_unpermuted(
    tmp_path: Path, tiny_student: Path, converted: Callable[[Path], Path]
) -> None:
    original = make_tiny_llama(tmp_path / "original", tiny_student)
    folder = converted(write_gguf(original, tmp_path / "tiny.gguf"))
    assert np.array_equal(logits(folder), logits(original))


LINEAR = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}


@pytest.mark.parametrize(("family", "metadata"), [("qwen2", {}), ("llama", {}), ("llama", LINEAR)])
def test_next_tokens_are_those_of_llama_cpp(
    family: str, metadata: dict[str, Any], tmp_path: Path, tiny_student: Path, converted: Callable[[Path], Path]
) -> None:
    original = tiny_student if family == "qwen2" else make_tiny_llama(tmp_path / "original", tiny_student)
    path = write_gguf(original, tmp_path / "tiny.gguf", metadata=metadata)
    scores = logits(converted(path))[-1]
    ours = scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max()
    for token, logprob in LlamaCpp(path).next_logprobs(PROMPT, 20).items():
        assert ours[token] == pytest.approx(logprob, abs=1e-4)


def test_a_quantised_file_becomes_float16_exactly(
    tmp_path: Path, tiny_student: Path, converted: Callable[[Path], Path]
) -> None:
    folder = converted(write_gguf(tiny_student, tmp_path / "tiny", "Q8_0"))  # no suffix, as Ollama's blobs
    weight = weights_of(folder)["model.layers.1.mlp.up_proj.weight"]
    values = model_tensors(tiny_student)["blk.1.ffn_up.weight"]
    kind = GGMLQuantizationType.Q8_0
    expected = quants.dequantize(quants.quantize(values, kind), kind)
    assert weight.dtype == mx.float16
    assert np.array_equal(np.array(weight), expected.astype(np.float16))


def test_end_tokens_of_a_turn_and_of_a_text_are_both_kept(
    tmp_path: Path, tiny_student: Path, converted: Callable[[Path], Path]
) -> None:
    path = write_gguf(tiny_student, tmp_path / "tiny.gguf", metadata={"tokenizer.ggml.eot_token_id": 0})
    folder = converted(path)
    assert load_tokenizer(folder).eos_token_ids == {0, 2}
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


def test_padding_and_user_defined_tokens_keep_their_kind(
    tmp_path: Path, tiny_student: Path, converted: Callable[[Path], Path]
) -> None:
    entries = model_metadata(tiny_student)
    tokens = [*entries["tokenizer.ggml.tokens"], "<tool_call>", "[PAD401]"]
    types = [*entries["tokenizer.ggml.token_type"], 4, 5]
    embedding = model_tensors(tiny_student)["token_embd.weight"]
    path = write_gguf(
        tiny_student,
        tmp_path / "tiny.gguf",
        metadata={"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types},
        tensors={"token_embd.weight": np.concatenate([embedding, embedding[:2]])},
    )
    tokenizer = load_tokenizer(converted(path))
    assert tokenizer.encode("<tool_call>", add_special_tokens=False) == [400]
    assert tokenizer.decode([400], skip_special_tokens=True) == "<tool_call>"
    assert 401 not in tokenizer.encode("[PAD401]", add_special_tokens=False)


def row(count: int, size: int = 64) -> Any:
    return np.ones((count, size), dtype=np.float32)


REFUSED = [
    ({"general.architecture": "gemma3"}, {}, "the architecture 'gemma3' is not supported from GGUF (llama, qwen2 are)"),
    ({"general.type": "adapter"}, {}, "holds a adapter, not a model"),
    ({"split.count": 3}, {}, "one of 3 parts of a split model"),
    ({"qwen2.block_count": None}, {}, "qwen2.block_count is missing"),
    ({"qwen2.block_count": 10**9}, {}, "qwen2.block_count = 1000000000, but the file holds only 26 tensors"),
    ({"qwen2.attention.head_count": [4, 4]}, {}, "qwen2.attention.head_count is '[4, 4]', not of type int"),
    ({"tokenizer.ggml.eos_token_id": None}, {}, "tokenizer.ggml.eos_token_id is missing"),
    ({"tokenizer.ggml.tokens": None}, {}, "tokenizer.ggml.tokens is missing"),
    ({"tokenizer.ggml.merges": None}, {}, "tokenizer.ggml.merges is missing"),
    ({"tokenizer.ggml.merges": ["a b", "a zzz"]}, {}, "do not join two tokens into a third"),
    ({"tokenizer.ggml.model": "llama"}, {}, "tokenizer.ggml.model = 'llama' (SentencePiece) is not supported"),
    ({"tokenizer.ggml.model": "bert"}, {}, "tokenizer.ggml.model = 'bert' is not supported"),
    ({"tokenizer.ggml.pre": "llama-bpe"}, {}, "'llama-bpe' is not a known pre-tokenizer (qwen2, smollm are)"),
    ({"tokenizer.ggml.pre": None}, {}, "tokenizer.ggml.pre = None is not a known pre-tokenizer"),
    ({"tokenizer.ggml.token_type": [1, 1, 6]}, {}, "token_type has 3 entries for 400 tokens"),
    ({"tokenizer.ggml.add_bos_token": True}, {}, "tokenizer.ggml.add_bos_token = true is not supported"),
    ({"tokenizer.ggml.eos_token_id": 999}, {}, "eos_token_id = 999 is outside the vocabulary of 400"),
    ({"qwen2.rope.scaling.type": "yarn"}, {}, "qwen2.rope.scaling.type = 'yarn' is not supported"),
    ({"qwen2.rope.scaling.type": "linear"}, {}, "qwen2.rope.scaling.factor = 0: linear rope scaling needs"),
    ({"qwen2.expert_count": 8}, {}, "qwen2.expert_count = 8 is not supported"),
    ({"qwen2.attention.key_length": 32}, {}, "qwen2.attention.key_length = 32 differs from the head size 16"),
    ({"qwen2.rope.dimension_count": 8}, {}, "qwen2.rope.dimension_count = 8 differs from the head size 16"),
    ({"qwen2.attention.head_count_kv": 3}, {}, "4 attention heads do not share 3 key-value heads evenly"),
    ({}, {"rope_freqs.weight": np.ones(8, dtype=np.float32)}, "tensor rope_freqs.weight does not belong to"),
    ({}, {"blk.0.attn_q.bias": None}, "tensor blk.0.attn_q.bias is missing"),
    ({}, {"blk.1.ffn_up.weight": row(100)}, "tensor blk.1.ffn_up.weight is 100×64, 128×64 was expected"),
    ({}, {"token_embd.weight": row(380)}, "tensor token_embd.weight is 380×64, 400×64 was expected"),
    ({}, {"blk.0.ffn_up.weight": row(128) * np.nan}, "tensor blk.0.ffn_up.weight holds NaN"),
    ({}, {"blk.0.ffn_up.weight": row(128).astype(np.int8)}, "values of type I8 are not supported"),
]


@pytest.mark.parametrize(("metadata", "tensors", "message"), REFUSED, ids=[message[:40] for _, _, message in REFUSED])
def test_what_cannot_be_converted_is_refused_by_name(
    metadata: dict[str, Any], tensors: dict[str, Any], message: str, tiny_student: Path, tmp_path: Path
) -> None:
    path = write_gguf(tiny_student, tmp_path / "tiny.gguf", metadata=metadata, tensors=tensors)
    with pytest.raises(InputError) as caught:
        convert_gguf(path, tmp_path)
    assert message in str(caught.value)
    assert str(path) in caught.value.message
    assert caught.value.next_step


def test_all_problems_of_a_file_are_listed_together(tiny_student: Path, tmp_path: Path) -> None:
    path = write_gguf(
        tiny_student,
        tmp_path / "tiny.gguf",
        metadata={"tokenizer.ggml.pre": "mystery", "qwen2.rope.scaling.type": "yarn"},
        tensors={"output_norm.weight": None},
    )
    with pytest.raises(InputError) as caught:
        convert_gguf(path, tmp_path)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "Q8_0", "tensors": {"blk.0.attn_norm.weight": np.full(64, 1e6, dtype=np.float32)}}, "beyond float16"),
        ({"big_endian": True}, "big-endian"),
    ],
)
def test_a_file_that_cannot_be_held_is_refused(
    changes: dict[str, Any], message: str, tiny_student: Path, tmp_path: Path
) -> None:
    path = write_gguf(tiny_student, tmp_path / "tiny.gguf", **changes)
    with pytest.raises(InputError, match=message):
        convert_gguf(path, tmp_path)


@pytest.mark.parametrize("share", [0.0001, 0.03, 0.5, 0.999])
def test_a_truncated_file_is_refused(share: float, tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    whole = tiny_gguf.read_bytes()
    path.write_bytes(whole[: max(4, int(len(whole) * share))])
    with pytest.raises(InputError, match="not a whole GGUF file"):
        convert_gguf(path, tmp_path)


ARRAY, TEXT = (9).to_bytes(4, "little"), (8).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (bytes(4) + (1 << 40).to_bytes(8, "little"), "the file is cut off"),
        (TEXT + (1 << 40).to_bytes(8, "little"), "the file is cut off"),
        ((ARRAY + (1).to_bytes(8, "little")) * 10_000 + bytes(13), "recursion"),
        (TEXT + (2501).to_bytes(8, "little") + bytes(20_008), "more than 5,000 values"),
    ],
)
def test_hostile_arrays_are_refused_before_they_take_memory(
    value: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_MAX_SLICES", 5000)
    key = (1).to_bytes(8, "little") + b"a" + ARRAY
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little") + key + value)
    with pytest.raises(InputError, match=message):
        read.open_gguf(file)
