"""Tokenizers in GGUF metadata: rebuilt so that they split text exactly as the original, and written.

GGUF names the way to split text before the merges ("pre-tokenizer") without its definition, so each name is registered
here with its meaning. Any other name is refused, because a wrong definition gives wrong tokens without an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mlx_distill.errors import MissingError
from mlx_distill.models.load import load_tokenizer
from mlx_distill.storage.atomic import write_json

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The split pattern in Qwen2's tokenizer.json."""


def _set_qwen2_pre_tokenizer(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])


def _set_smollm_pre_tokenizer(tokenizer: Tokenizer) -> None:
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])


PRE_TOKENIZERS: Mapping[str, Callable[[Tokenizer], None]] = {
    "qwen2": _set_qwen2_pre_tokenizer,
    "smollm": _set_smollm_pre_tokenizer,
}
"""`tokenizer.ggml.pre` to the function that sets a tokenizer's normalizer and pre-tokenizer."""

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""`tokenizer.ggml.token_type`, as far as byte-level BPE uses it (llama.cpp: enum llama_token_type)."""

PREFIX = "tokenizer.ggml."
_SPECIAL = ("bos_token_id", "eos_token_id", "eot_token_id", "padding_token_id")
KEYS: Mapping[str, tuple[type, bool]] = {
    f"{PREFIX}model": (str, True),
    f"{PREFIX}pre": (str, False),
    f"{PREFIX}tokens": (list, True),
    f"{PREFIX}token_type": (list, True),
    f"{PREFIX}merges": (list, False),
    **{PREFIX + name: (int, name == "eos_token_id") for name in _SPECIAL},
    "tokenizer.chat_template": (str, False),
}
"""Metadata keys with their type, and if they are required."""


def problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yield the reasons why the tokenizer cannot be rebuilt faithfully."""
    model, pre = metadata[f"{PREFIX}model"], metadata.get(f"{PREFIX}pre")
    if model != "gpt2":
        kind = " (SentencePiece)" if model == "llama" else ""
        yield f"{PREFIX}model = {model!r}{kind} is not supported: byte-level BPE ('gpt2') is"
        return
    if pre not in PRE_TOKENIZERS:
        yield f"{PREFIX}pre = {pre!r} is not a known pre-tokenizer ({', '.join(PRE_TOKENIZERS)} are)"
    tokens, types = metadata[f"{PREFIX}tokens"], metadata[f"{PREFIX}token_type"]
    if not all(isinstance(token, str) for token in tokens):
        yield f"{PREFIX}tokens holds values that are not text"
        return
    known = set(tokens)
    if len(types) != len(tokens):
        yield f"{PREFIX}token_type has {len(types)} entries for {len(tokens)} tokens"
    if len(known) != len(tokens):
        yield f"{PREFIX}tokens holds {len(tokens) - len(known)} tokens twice"
    if unknown := sorted(set(types) - {NORMAL, CONTROL, USER_DEFINED, UNUSED}):
        yield f"{PREFIX}token_type holds {', '.join(map(str, unknown))}, which byte-level BPE does not have"
    merges = metadata.get(f"{PREFIX}merges")
    if merges is None:
        yield f"{PREFIX}merges is missing"
    elif broken := [merge for merge in merges if not _joins(merge, known)]:
        yield (
            f"{PREFIX}merges: {len(broken)} of {len(merges)} do not join two tokens into a third, such as {broken[0]!r}"
        )
    for name in ("add_bos_token", "add_eos_token"):
        if metadata.get(PREFIX + name):
            yield f"{PREFIX}{name} = true is not supported"
    for name, token in _ids_in(metadata).items():
        if not 0 <= token < len(tokens):
            yield f"{PREFIX}{name} = {token} is outside the vocabulary of {len(tokens)}"


def _joins(merge: object, tokens: set[str]) -> bool:
    pair = str(merge).split(" ")
    return len(pair) == 2 and {*pair, "".join(pair)} <= tokens


def special_ids(metadata: Mapping[str, Any]) -> dict[str, int | list[int]]:
    """Return `eos_token_id` (a list if a turn and a text end differently), `bos_token_id` and `pad_token_id`."""
    ids = _ids_in(metadata)
    ends = list(dict.fromkeys(ids[name] for name in ("eos_token_id", "eot_token_id") if name in ids))
    found: dict[str, int | list[int]] = {"eos_token_id": ends if len(ends) > 1 else ends[0]}
    for name, key in (("bos_token_id", "bos_token_id"), ("pad_token_id", "padding_token_id")):
        if key in ids:
            found[name] = ids[key]
    return found


def _ids_in(metadata: Mapping[str, Any]) -> dict[str, int]:
    return {name: metadata[PREFIX + name] for name in _SPECIAL if metadata.get(PREFIX + name) is not None}


def build(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer of metadata that has no `problems`."""
    tokens, types = metadata[f"{PREFIX}tokens"], metadata[f"{PREFIX}token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata[f"{PREFIX}merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    PRE_TOKENIZERS[metadata[f"{PREFIX}pre"]](tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    return tokenizer


def save(metadata: Mapping[str, Any], folder: Path, max_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json with the chat template, and generation_config.json."""
    build(metadata).save(str(folder / "tokenizer.json"))
    tokens, ids = metadata[f"{PREFIX}tokens"], _ids_in(metadata)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")):
        if f"{key}_token_id" in ids:
            settings[name] = tokens[ids[f"{key}_token_id"]]
    if template := metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "generation_config.json", special_ids(metadata))


def metadata_of(model: Path, vocabulary_size: int) -> tuple[dict[str, Any], list[str]]:
    """Return a model folder's tokenizer as metadata, or the reasons why GGUF cannot describe it.

    Rows of the embedding without a token become unused tokens.
    """
    file = model / "tokenizer.json"
    if not file.is_file():
        raise MissingError(f"{file} is missing, and GGUF is written from it.", "Export a model that has one.")
    wrapper, data = load_tokenizer(model), json.loads(file.read_text(encoding="utf-8"))
    if data["model"].get("type") != "BPE":
        return {}, [f"tokenizer.json holds a {data['model'].get('type')} model; byte-level BPE can be written"]
    added = {token["id"]: token for token in data["added_tokens"]}
    names = {index: token for token, index in data["model"]["vocab"].items()}
    names |= {index: token["content"] for index, token in added.items()}
    types = dict.fromkeys(names, NORMAL)
    types |= {index: CONTROL if token["special"] else USER_DEFINED for index, token in added.items()}
    metadata = {
        f"{PREFIX}model": "gpt2",
        f"{PREFIX}pre": _pre_tokenizer_name(data),
        f"{PREFIX}tokens": [names.get(index, f"[PAD{index}]") for index in range(vocabulary_size)],
        f"{PREFIX}token_type": [types.get(index, UNUSED) for index in range(vocabulary_size)],
        f"{PREFIX}merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]],
        f"{PREFIX}add_bos_token": False,
        f"{PREFIX}add_space_prefix": False,
        **_ids_to_write(wrapper),
    }
    template = wrapper.chat_template
    metadata["tokenizer.chat_template"] = template["default"] if isinstance(template, dict) else str(template)
    return metadata, list(_writing_problems(data, wrapper, max(names, default=0), metadata))


def _writing_problems(
    data: Mapping[str, Any], wrapper: TokenizerWrapper, last: int, metadata: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what GGUF cannot say: the tokenizer that a reader would rebuild differs from the original."""
    if last >= len(metadata[f"{PREFIX}tokens"]):
        yield f"the tokenizer has tokens up to {last}, the embedding only {len(metadata[f'{PREFIX}tokens'])} rows"
        return
    if metadata[f"{PREFIX}pre"] is None:
        yield f"tokenizer.json splits text in a way that has no known name ({', '.join(PRE_TOKENIZERS)} have)"
    for setting in ("ignore_merges", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if data["model"].get(setting):
            yield f"tokenizer.json: {setting} is not supported"
    for token in data["added_tokens"]:
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            yield f"tokenizer.json: {token['content']!r} takes in the space around it, which GGUF cannot describe"
    if len(wrapper.eos_token_ids) > 2:
        yield f"{len(wrapper.eos_token_ids)} tokens end a turn; GGUF names two"
    if wrapper.encode("", add_special_tokens=True):
        yield "the tokenizer puts a token before every text, which is not supported"


def _pre_tokenizer_name(data: Mapping[str, Any]) -> str | None:
    """Return the registered name of what tokenizer.json does before the merges."""
    for name, set_pre_tokenizer in PRE_TOKENIZERS.items():
        tokenizer = Tokenizer(models.BPE())
        set_pre_tokenizer(tokenizer)
        registered = json.loads(tokenizer.to_str())
        parts = ("normalizer", "pre_tokenizer")
        if all(_comparable(data.get(part)) == _comparable(registered[part]) for part in parts):
            return name
    return None


def _comparable(part: Any) -> Any:
    """Remove what does not change tokens from a normalizer or pre-tokenizer."""
    if isinstance(part, Mapping):
        return {name: _comparable(value) for name, value in part.items() if name not in ("trim_offsets", "invert")}
    return [_comparable(item) for item in part] if isinstance(part, list) else part


def _ids_to_write(wrapper: TokenizerWrapper) -> dict[str, int]:
    ends = sorted(wrapper.eos_token_ids)
    first = wrapper.eos_token_id if wrapper.eos_token_id in ends else ends[0]
    rest = [token for token in ends if token != first]
    found = {
        "eos_token_id": first,
        "eot_token_id": rest[0] if rest else None,
        "bos_token_id": wrapper.bos_token_id,
        "padding_token_id": wrapper.pad_token_id,
    }
    return {PREFIX + name: token for name, token in found.items() if token is not None}
