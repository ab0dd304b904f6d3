"""A model folder's tokenizer as GGUF metadata, or the reasons why GGUF cannot say what it does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_distill.errors import MissingError
from mlx_distill.models.gguf_tokenizer import CONTROL, NORMAL, PRE_TOKENIZERS, UNUSED, USER_DEFINED
from mlx_distill.models.load import load_tokenizer

_KEY = "tokenizer.ggml."


def tokenizer_metadata(model: Path, vocabulary_size: int) -> tuple[dict[str, Any], list[str]]:
    """The metadata, with unused tokens up to the embedding's `vocabulary_size` rows, and the problems found."""
    file = model / "tokenizer.json"
    if not file.is_file():
        raise MissingError(f"{file} is missing, and GGUF is written from it.", "Export a model that has one.")
    data = json.loads(file.read_text(encoding="utf-8"))
    wrapper = load_tokenizer(model)
    added = {token["id"]: token for token in data.get("added_tokens", [])}
    names = {**{index: token for token, index in data["model"].get("vocab", {}).items()}}
    names |= {index: token["content"] for index, token in added.items()}
    pre = _pre_tokenizer(data)
    problems = list(_problems(data, wrapper, names, vocabulary_size))
    if pre is None:
        problems.append(f"tokenizer.json cuts text in a way that has no known name ({', '.join(PRE_TOKENIZERS)} have)")
    if problems:
        return {}, problems
    tokens = [names.get(index, f"[PAD{index}]") for index in range(vocabulary_size)]
    types = [_type_of(index, names, added) for index in range(vocabulary_size)]
    metadata = {
        f"{_KEY}model": "gpt2",
        f"{_KEY}pre": pre,
        f"{_KEY}tokens": tokens,
        f"{_KEY}token_type": types,
        f"{_KEY}merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]],
        f"{_KEY}add_bos_token": False,
        f"{_KEY}add_space_prefix": False,
        **{_KEY + name: token for name, token in _special_ids(wrapper).items()},
    }
    return {**metadata, "tokenizer.chat_template": _template(wrapper)}, []


def _pre_tokenizer(data: Mapping[str, Any]) -> str | None:
    """The registered name of what tokenizer.json does before the merges, or None."""
    from tokenizers import Tokenizer, models

    for name, cut in PRE_TOKENIZERS.items():
        known = Tokenizer(models.BPE())
        cut(known)
        registered = json.loads(known.to_str())
        if all(
            _comparable(data.get(part)) == _comparable(registered[part]) for part in ("normalizer", "pre_tokenizer")
        ):
            return name
    return None


def _comparable(part: Any) -> Any:
    """A normalizer or pre-tokenizer without what does not change tokens: offsets, and the spelling of behaviours."""
    if isinstance(part, Mapping):
        return {name: _comparable(value) for name, value in part.items() if name not in ("trim_offsets", "invert")}
    if isinstance(part, list):
        return [_comparable(item) for item in part]
    return part


def _problems(
    data: Mapping[str, Any], wrapper: TokenizerWrapper, names: Mapping[int, str], vocabulary_size: int
) -> Iterator[str]:
    model = data["model"]
    if model.get("type") != "BPE":
        yield f"tokenizer.json holds a {model.get('type')} model; byte-level BPE can be written"
        return
    for setting in ("ignore_merges", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            yield f"tokenizer.json: {setting} is not supported"
    for token in data.get("added_tokens", []):
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            yield f"tokenizer.json: {token['content']!r} takes in the space around it, which GGUF cannot say"
    if names and max(names) >= vocabulary_size:
        yield f"the tokenizer has tokens up to {max(names)}, the embedding only {vocabulary_size} rows"
    if len(wrapper.eos_token_ids) > 2:
        yield f"{len(wrapper.eos_token_ids)} tokens end a turn; GGUF names two"
    if wrapper.encode("", add_special_tokens=True):
        yield "the tokenizer puts a token before every text, which is not supported"


def _type_of(index: int, names: Mapping[int, str], added: Mapping[int, Mapping[str, Any]]) -> int:
    if index in added:
        return CONTROL if added[index].get("special") else USER_DEFINED
    return NORMAL if index in names else UNUSED


def _special_ids(wrapper: TokenizerWrapper) -> dict[str, int]:
    """The tokens that end a turn and a text, begin one, and pad: those the model has."""
    ends = sorted(wrapper.eos_token_ids)
    first = wrapper.eos_token_id if wrapper.eos_token_id in ends else ends[0]
    found = {"eos_token_id": first, "bos_token_id": wrapper.bos_token_id, "padding_token_id": wrapper.pad_token_id}
    rest = [token for token in ends if token != first]
    if rest:
        found["eot_token_id"] = rest[0]
    return {name: token for name, token in found.items() if token is not None}


def _template(wrapper: TokenizerWrapper) -> str:
    """The chat template; of several named ones the default."""
    template = wrapper.chat_template
    return template["default"] if isinstance(template, dict) else str(template)
