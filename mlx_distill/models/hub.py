"""The Hugging Face Hub: download of models, and its errors in the user's words.

The needed files of one pinned revision go into the Hub's own cache. Only safetensors, JSON and text are downloaded:
never pickles, never code.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from httpx2 import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm.std import tqdm

from mlx_distill.errors import DistillError, InputError, MachineError
from mlx_distill.events import Note, Progress, Report, ignore
from mlx_distill.formatting import first_line
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

_LOG_IN = "log in with `hf auth login` (or set HF_TOKEN), then run the same command again."


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


@contextmanager
def hub_errors(repository: str, revision: str = "", *, upload: bool = False) -> Iterator[None]:
    """Raise InputError for what the user can change, MachineError if the network, the Hub or the disk fails."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _refused(repository, revision, error, upload) from error
    except (HTTPError, OSError) as error:  # LocalEntryNotFoundError is an OSError: the cache has no copy either
        cause = error.__cause__ or error
        if isinstance(cause, HfHubHTTPError):
            raise _refused(repository, revision, cause, upload) from error
        cache = ", and the cache has no complete copy" if isinstance(error, LocalEntryNotFoundError) else ""
        raise MachineError(
            f"{repository}: the Hub cannot be reached or the connection broke{cache} ({first_line(cause)}).",
            "Check the connection, the disk, HF_ENDPOINT and HF_HUB_OFFLINE. Run the same command again: "
            "complete files are kept.",
        ) from error
    except ValueError as error:  # an impossible id, or an answer that does not come from a Hub
        raise InputError(
            f"{repository}: {first_line(error)}", "Check the name (OWNER/NAME), and HF_ENDPOINT if it is set."
        ) from error


def _refused(repository: str, revision: str, error: HfHubHTTPError, upload: bool) -> DistillError:
    status = error.response.status_code
    if upload and status in (401, 403):
        return InputError(
            f"{repository}: the Hub refuses this token ({status}).",
            "The token needs write access to that account: https://huggingface.co/settings/tokens, then: hf auth login",
        )
    if isinstance(error, GatedRepoError):
        return InputError(
            f"{repository}: access is gated, and this user has none ({status}).",
            f"Accept the terms on the page of {repository} on the Hub, {_LOG_IN}",
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(
            f"{repository}: there is no revision {revision or 'main'!r} ({status}).", "Name a branch, tag or commit."
        )
    if status in (401, 403):
        return InputError(
            f"{repository}: the Hub refuses access ({status}): there is no such repository, or it is private or gated.",
            f"Check the name; for a private repository {_LOG_IN}",
        )
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return InputError(f"{repository}: there is no such repository on the Hub ({status}).", "Check the name.")
    return MachineError(
        f"{repository}: the Hub answered {status}.", "Run the same command again later: complete files are kept."
    )


class _Bar(tqdm):  # type: ignore[misc] # tqdm has no types
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
