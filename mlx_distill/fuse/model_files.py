"""What a model folder holds beside its weights: config, tokenizer, chat template, generation config."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from mlx_distill.models.load import read_config
from mlx_distill.models.provenance import PROVENANCE_FILE
from mlx_distill.storage.atomic import write_json

_SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model", ".tiktoken"})
_NAMES = ("LICENSE", "LICENCE", "NOTICE")
_TEMPLATE_FILE = "chat_template.jinja"
_NOT_OURS = (".index.json", PROVENANCE_FILE)
"""Of the base alone: which tensor lies in which of its files, and what it was converted from."""


def copy_companions(source: Path, target: Path, *, dtype: str, quantization: dict[str, Any] | None) -> None:
    """Copy everything that readers need beside the weights; `dtype` and `quantization` are those of `target`'s."""
    for file in sorted(source.iterdir()):
        wanted = file.suffix in _SUFFIXES or file.name.startswith(_NAMES)
        if file.is_file() and wanted and not file.name.startswith(".") and not file.name.endswith(_NOT_OURS):
            shutil.copyfile(file, target / file.name)
    _write_config(source, target, dtype, quantization)
    _write_template_in_both_places(target)


def _write_config(source: Path, target: Path, dtype: str, quantization: dict[str, Any] | None) -> None:
    """The base's config with the quantisation that the weights have now, under both names as mlx-lm writes it."""
    config = read_config(source)
    for name in ("quantization", "quantization_config"):
        config.pop(name, None)
        if quantization:
            config[name] = quantization
    config["dtype" if "dtype" in config else "torch_dtype"] = dtype
    write_json(target / "config.json", config)


def _write_template_in_both_places(folder: Path) -> None:
    """Newer readers look for the chat template in a file of its own, older ones in tokenizer_config.json."""
    settings_file, template_file = folder / "tokenizer_config.json", folder / _TEMPLATE_FILE
    settings = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file.exists() else {}
    template = settings.get("chat_template")
    if template_file.exists():
        write_json(settings_file, {**settings, "chat_template": template_file.read_text(encoding="utf-8")})
    elif isinstance(template, str):
        template_file.write_text(template, encoding="utf-8")
