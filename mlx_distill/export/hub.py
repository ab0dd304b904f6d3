"""`push`: a fused model to the Hugging Face Hub, after the user has seen what would go there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mlx_distill.config import Config, doc
from mlx_distill.errors import DistillError, InputError, Interrupted, MachineError, MissingError
from mlx_distill.events import Note, Report, ignore

if TYPE_CHECKING:
    from huggingface_hub import HfApi


class PushConfig(Config, frozen=True):
    """What goes where."""

    model: Annotated[Path, doc("the fused model folder")]
    repo: Annotated[str, doc("the repository: OWNER/NAME, or NAME under your own account")]
    private: Annotated[bool, doc("only you can see it")] = True
    force: Annotated[bool, doc("replace files that the repository holds already")] = False


@dataclass(frozen=True)
class Listing:
    """What would be uploaded."""

    repo: str
    private: bool
    files: tuple[tuple[str, int], ...]
    """Names and bytes."""

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self.files)


@dataclass(frozen=True)
class PushResult:
    """What was uploaded."""

    repo: str
    """OWNER/NAME."""
    url: str
    private: bool
    n_files: int
    size_bytes: int


def run(config: PushConfig, report: Report = ignore, *, confirm: Callable[[Listing], bool]) -> PushResult:
    """List, ask, upload. `confirm` sees the listing and says whether to go on.

    All files arrive in one commit. Raises InputError for a folder that is no fused model, a bad name, a repository
    that is public already though private was asked for, or one that holds such files already unless forced;
    MissingError without a token; MachineError where the Hub cannot be reached; Interrupted where `confirm` says no.
    """
    from huggingface_hub import HfApi, get_token

    files = _files(config.model)
    listing = Listing(config.repo, config.private, files)
    _check_name(config.repo)
    if not get_token():
        raise MissingError(
            "There is no token for the Hugging Face Hub.",
            "Make one with write access at https://huggingface.co/settings/tokens, then: hf auth login",
        )
    if not confirm(listing):
        raise Interrupted("Nothing was uploaded.")
    api = HfApi(library_name="mlx-distill")
    repo, url = _make_repository(api, config, {name for name, _ in files})
    report(Note(f"Uploading {len(files)} files to {repo} ..."))
    with _hub_errors(repo):
        api.upload_folder(
            repo_id=repo,
            folder_path=config.model,
            allow_patterns=[name for name, _ in files],
            commit_message="Upload with mlx-distill",
        )
    return PushResult(repo, url, config.private, len(files), listing.size_bytes)


def _files(folder: Path) -> tuple[tuple[str, int], ...]:
    """The folder's visible files with their sizes. A fused model is one level deep."""
    fuse = "Name a folder that `mlx-distill fuse` made."
    if not folder.is_dir():
        raise MissingError(f"{folder}: there is no model folder here.", fuse)
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{folder} is an adapter, which is no model without its base.", fuse)
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    if "config.json" not in [file.name for file in files] or not any(file.suffix == ".safetensors" for file in files):
        raise InputError(f"{folder}: no config.json with safetensors weights beside it.", fuse)
    return tuple((file.name, file.stat().st_size) for file in files)


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(
            f"{repo!r} is not a name for a repository: {error}", "Give OWNER/NAME, or NAME alone."
        ) from error


def _make_repository(api: HfApi, config: PushConfig, files: set[str]) -> tuple[str, str]:
    """The repository's full name and address, made where it is not there yet."""
    with _hub_errors(config.repo):
        made = api.create_repo(config.repo, private=config.private, exist_ok=True)
        found = api.model_info(made.repo_id)
    there = sorted(files & {file.rfilename for file in found.siblings or ()})
    if there and not config.force:
        raise InputError(
            f"{made.repo_id} holds {', '.join(there)} already; nothing was uploaded.",
            "Choose another name, or pass --force: the files as they are stay in the repository's history.",
        )
    if config.private and not found.private:
        raise InputError(
            f"{made.repo_id} is on the Hub already and everybody can see it; nothing was uploaded.",
            "Choose another name, make it private in its settings, or pass --no-private.",
        )
    return made.repo_id, str(made)


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        raise _refused(repo, error.response.status_code) from error
    except (HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise MachineError(
            f"{repo}: the Hub cannot be reached ({reason[0][:200]}).",
            "Check the connection (and HF_ENDPOINT, HF_HUB_OFFLINE), then run the same command again.",
        ) from error


def _refused(repo: str, status: int) -> DistillError:
    if status in (401, 403):
        return InputError(
            f"{repo}: the Hub refuses this token ({status}).",
            "The token needs write access to that account: https://huggingface.co/settings/tokens, then: hf auth login",
        )
    return MachineError(f"{repo}: the Hub answered {status}.", "Run the same command again later.")
