"""Download of students from the Hugging Face Hub: the needed files of one pinned revision, into the Hub's own cache.

Only safetensors, JSON and text are downloaded: never pickles, never code.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from tqdm.std import tqdm

from mlx_distill.events import Note, Progress, Report, ignore
from mlx_distill.models.hub import hub_errors
from mlx_distill.models.safetensors_io import WEIGHTS
from mlx_distill.storage.files import MODEL_CONFIG

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""Files that belong to the weights and the config. A chat template is in tokenizer_config.json or in its own file."""

PATTERNS = [WEIGHTS, "model.safetensors.index.json", MODEL_CONFIG, *TOKENIZER_FILES]


def fetch(repository: str, revision: str = "", report: Report = ignore) -> Path:
    """Download the missing files of a repository and return their folder, whose name is the commit.

    A broken connection resumes where it broke. Without a connection, a complete copy in the cache is used, with a
    note. Raises what `hub_errors` raises.
    """
    bars: list[_Bar] = []

    class Bar(_Bar):
        made, report_to = bars, staticmethod(report)

    with hub_errors(repository, revision):
        folder = snapshot_download(
            repository, revision=revision or None, allow_patterns=PATTERNS, tqdm_class=Bar, library_name="mlx-distill"
        )
    if not bars:
        report(Note(f"The Hub cannot be reached. Using the cached copy of {repository} ({Path(folder).name[:12]})."))
    return Path(folder)


class _Bar(tqdm):  # type: ignore[misc]
    """A progress bar for huggingface_hub that reports the bytes and draws nothing."""

    monitor_interval = 0  # no thread that watches for slow bars
    made: list[_Bar]
    report_to: Report

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "file": io.StringIO(), "mininterval": 0})
        self.made.append(self)
        self.counts_bytes = options.get("unit") == "B"

    def display(self, *_arguments: Any, **_options: Any) -> None:
        """Report the bytes. Of several bars, the last one that counts bytes has the total."""
        counting = [bar for bar in self.made if bar.counts_bytes]
        if counting and counting[-1] is self and self.total:
            self.report_to(Progress("download", round(self.n / 1e6, 1), round(self.total / 1e6, 1), "MB"))
