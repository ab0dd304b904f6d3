"""The tokenizer in a GGUF file's metadata, rebuilt so that it cuts text exactly as the original did.

GGUF names the way text is cut before the merges ("pre-tokenizer") without saying what it does, so each name is
registered here with its meaning; any other is refused, since a wrong one gives wrong tokens in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_distill.models.gguf_file import GgufFile
from mlx_distill.storage.atomic import write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer.json cuts text."""


def _cut_as_qwen2(tokenizer: Tokenizer) -> None:
    from tokenizers import Regex, normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _cut_as_smollm(tokenizer: Tokenizer) -> None:
    from tokenizers import pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


PRE_TOKENIZERS: Mapping[str, Callable[[Tokenizer], None]] = {"qwen2": _cut_as_qwen2, "smollm": _cut_as_smollm}
"""`tokenizer.ggml.pre` to what sets a tokenizer's normalizer and pre-tokenizer accordingly."""

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""`tokenizer.ggml.token_type`, as far as byte-level BPE has them (llama.cpp: enum llama_token_type)."""

_KEY = "tokenizer.ggml."
REQUIRED: Mapping[str, type] = {
    f"{_KEY}model": str,
    f"{_KEY}tokens": list,
    f"{_KEY}token_type": list,
    f"{_KEY}eos_token_id": int,
}
"""Metadata without which there is no tokenizer to rebuild."""


def problems(gguf: GgufFile) -> Iterator[str]:
    """What keeps the tokenizer from being rebuilt faithfully; nothing where all is well."""
    model, pre = gguf.get(f"{_KEY}model"), gguf.get(f"{_KEY}pre")
    if model != "gpt2":
        kind = " (SentencePiece)" if model == "llama" else ""
        yield f"{_KEY}model = {model!r}{kind} is not supported: byte-level BPE ('gpt2') is"
        return
    if pre not in PRE_TOKENIZERS:
        yield f"{_KEY}pre = {pre!r} is not a known pre-tokenizer ({', '.join(PRE_TOKENIZERS)} are)"
    tokens, types = gguf.get(f"{_KEY}tokens"), gguf.get(f"{_KEY}token_type")
    if len(types) != len(tokens):
        yield f"{_KEY}token_type has {len(types)} entries for {len(tokens)} tokens"
    if len(set(tokens)) != len(tokens):
        yield f"{_KEY}tokens holds {len(tokens) - len(set(tokens))} tokens twice"
    if unknown := sorted(set(types) - {NORMAL, CONTROL, USER_DEFINED, UNUSED}):
        yield f"{_KEY}token_type holds {', '.join(map(str, unknown))}, which byte-level BPE does not have"
    yield from _merge_problems(gguf.get(f"{_KEY}merges"), set(tokens))
    for name in ("add_bos_token", "add_eos_token"):
        if gguf.get(f"{_KEY}{name}"):
            yield f"{_KEY}{name} = true is not supported"
    for name, token in _ids(gguf).items():
        if not 0 <= token < len(tokens):
            yield f"{_KEY}{name} = {token} is outside the vocabulary of {len(tokens)}"


def _merge_problems(merges: object, tokens: set[str]) -> Iterator[str]:
    if not isinstance(merges, list):
        yield f"{_KEY}merges is missing"
        return
    broken = [
        merge
        for merge in merges
        if (pair := merge.split(" ")) and (len(pair) != 2 or not {*pair, "".join(pair)} <= tokens)
    ]
    if broken:
        yield f"{_KEY}merges: {len(broken)} of {len(merges)} do not join two tokens into a third, such as {broken[0]!r}"


def special_ids(gguf: GgufFile) -> dict[str, int | list[int]]:
    """`bos_token_id`, `eos_token_id` (a list where a turn and a text end differently) and `pad_token_id`."""
    ids = _ids(gguf)
    ends = list(dict.fromkeys(ids[name] for name in ("eos_token_id", "eot_token_id") if name in ids))
    found: dict[str, int | list[int]] = {"eos_token_id": ends if len(ends) > 1 else ends[0]}
    if "bos_token_id" in ids:
        found["bos_token_id"] = ids["bos_token_id"]
    if "padding_token_id" in ids:
        found["pad_token_id"] = ids["padding_token_id"]
    return found


def _ids(gguf: GgufFile) -> dict[str, int]:
    names = ("bos_token_id", "eos_token_id", "eot_token_id", "padding_token_id")
    values = {name: gguf.get(_KEY + name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def build(gguf: GgufFile) -> Tokenizer:
    """The tokenizer of a file that has no `problems`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    tokens, types = gguf.get(f"{_KEY}tokens"), gguf.get(f"{_KEY}token_type")
    merges = [tuple(merge.split(" ")) for merge in gguf.get(f"{_KEY}merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    PRE_TOKENIZERS[gguf.get(f"{_KEY}pre")](tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    added = [
        AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    return tokenizer


def write(gguf: GgufFile, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json with the chat template, and generation_config.json."""
    build(gguf).save(str(folder / "tokenizer.json"))
    tokens, ids = gguf.get(f"{_KEY}tokens"), _ids(gguf)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": gguf.get(f"{gguf.get('general.architecture')}.context_length"),
    }
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")):
        if f"{key}_token_id" in ids:
            settings[name] = tokens[ids[f"{key}_token_id"]]
    if template := gguf.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "generation_config.json", special_ids(gguf))
