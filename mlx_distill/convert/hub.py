"""Students from the Hugging Face Hub: what is needed of one pinned revision, into the Hub's own cache.

Only safetensors, JSON and text are asked for: never pickles, never code.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_distill.errors import DistillError, InputError, MachineError
from mlx_distill.events import Note, Progress, Report, ignore
from mlx_distill.models.safetensors_io import WEIGHTS

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
"""What goes with the weights and the config; a chat template lies in tokenizer_config.json or in a file of its own."""

PATTERNS = [WEIGHTS, "model.safetensors.index.json", "config.json", *TOKENIZER_FILES]


@dataclass(frozen=True)
class Snapshot:
    """A revision of a repository on this machine."""

    folder: Path
    revision: str
    """The commit, 40 hex digits."""


def fetch(repository: str, revision: str = "", report: Report = ignore) -> Snapshot:
    """Download what is missing of a repository.

    A connection that breaks is taken up where it broke; files that arrived whole are not fetched again by a later run.
    Where the Hub cannot be reached, a complete copy in the cache serves, and a note says so. Raises InputError for
    a repository or revision that is not there or not open to this user, MachineError where network or disk fails.
    """
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    bars = _bars_that_report(report)
    try:
        folder = snapshot_download(
            repository, revision=revision or None, allow_patterns=PATTERNS, tqdm_class=bars, library_name="mlx-distill"
        )
    except LocalEntryNotFoundError as error:  # not in the cache, and the cause is why the Hub gave nothing
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _refused(repository, revision, error.__cause__) from error
        raise _unreachable(repository, error) from error
    except HfHubHTTPError as error:
        raise _refused(repository, revision, error) from error
    except (HTTPError, OSError) as error:
        raise _interrupted(repository, error) from error
    except ValueError as error:  # an id that no repository can have, or an answer that is not the Hub's
        raise InputError(
            f"{repository}: {_first_line(error)}", "Check the name, and HF_ENDPOINT where it is set."
        ) from error
    snapshot = Snapshot(Path(folder), Path(folder).name)
    if not bars.made:
        report(
            Note(f"The Hub was not reached; the copy of {repository} in the cache serves ({snapshot.revision[:12]}).")
        )
    return snapshot


def _bars_that_report(report: Report) -> Any:
    """A progress bar class for huggingface_hub that draws nothing and reports the bytes instead."""
    from tqdm.std import tqdm

    class Bars(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread that watches for slow bars
        made: list[Bars] = []  # noqa: RUF012 - of this class alone, which is made for one download

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "file": io.StringIO(), "mininterval": 0})
            self.made.append(self)
            self.counts_bytes = options.get("unit") == "B"

        def display(self, *_arguments: Any, **_options: Any) -> None:
            """Called wherever a bar would be drawn. The last bar made that counts bytes counts those written."""
            counting = [bar for bar in self.made if bar.counts_bytes]
            if counting and counting[-1] is self and self.total:
                report(Progress("download", round(self.n / 1e6, 1), round(self.total / 1e6, 1), "MB"))

    return Bars


def _unreachable(repository: str, error: Exception) -> DistillError:
    cause = error.__cause__ or error
    return MachineError(
        f"{repository}: the Hub cannot be reached, and the cache has no complete copy ({_first_line(cause)}).",
        "Check the connection (and HF_ENDPOINT, HF_HUB_OFFLINE), then run the same command again.",
    )


def _interrupted(repository: str, error: Exception) -> DistillError:
    return MachineError(
        f"{repository}: the download stopped ({_first_line(error)}).",
        "Files that arrived whole are kept. Check connection and disk space, then run the same command again.",
    )


def _refused(repository: str, revision: str, error: Any) -> DistillError:
    """The error of an HTTP answer that is no success."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    log_in = "log in with `hf auth login` (or set HF_TOKEN), then run the same command again."
    if isinstance(error, GatedRepoError):
        return InputError(
            f"{repository}: access is gated, and this user has none ({status}).",
            f"Accept the terms on the page of {repository} on the Hub, {log_in}",
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(
            f"{repository}: there is no revision {revision or 'main'!r} ({status}).", "Name a branch, tag or commit."
        )
    if status == 401:
        return InputError(
            f"{repository}: the Hub refuses it (401): there is no such repository, or it is private or gated.",
            f"Check the name; for a private repository {log_in}",
        )
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return InputError(f"{repository}: there is no such repository on the Hub ({status}).", "Check the name.")
    if status == 403:
        return InputError(f"{repository}: the Hub forbids it (403).", f"Ask for access on its page, {log_in}")
    return MachineError(
        f"{repository}: the Hub answered {status}.",
        "Files that arrived whole are kept. Run the same command again later.",
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
