"""`push`: upload a fused model to the Hugging Face Hub."""

from __future__ import annotations

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils._validators import validate_repo_id

from mlx_distill.errors import InputError, MissingError
from mlx_distill.events import Note, Report, ignore
from mlx_distill.export.config import PushConfig, PushResult
from mlx_distill.models.hub import hub_errors
from mlx_distill.storage.files import ADAPTER_CONFIG, MODEL_CONFIG


def files_to_upload(config: PushConfig) -> dict[str, int]:
    """Return the names and sizes of the folder's visible files, without a request to the Hub.

    Raises InputError for a folder that is not a fused model or a bad name, MissingError without a token.
    """
    folder, fuse = config.model, "Name a folder that `mlx-distill fuse` made."
    if not folder.is_dir():
        raise MissingError(f"{folder}: there is no model folder here.", fuse)
    if (folder / ADAPTER_CONFIG).exists():
        raise InputError(f"{folder} is an adapter, which is not a model without its base.", fuse)
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    if not (folder / MODEL_CONFIG).is_file() or not any(file.suffix == ".safetensors" for file in files):
        raise InputError(f"{folder}: config.json or safetensors weights are missing.", fuse)
    with hub_errors(config.repo):
        validate_repo_id(config.repo)
    if not get_token():
        raise MissingError(
            "There is no token for the Hugging Face Hub.",
            "Make one with write access at https://huggingface.co/settings/tokens, then: hf auth login",
        )
    return {file.name: file.stat().st_size for file in files}


def run(config: PushConfig, report: Report = ignore) -> PushResult:
    """Upload the files of `files_to_upload` in one commit.

    Raises InputError for a public repository although `private` is set, or files that the repository holds already
    without `force`; and what `files_to_upload` and `hub_errors` raise.
    """
    files = files_to_upload(config)
    api = HfApi(library_name="mlx-distill")
    with hub_errors(config.repo, upload=True):
        made = api.create_repo(config.repo, private=config.private, exist_ok=True)
        found = api.model_info(made.repo_id)
        there = sorted(files.keys() & {file.rfilename for file in found.siblings or ()})
        if there and not config.force:
            raise InputError(
                f"{made.repo_id} holds {', '.join(there)} already; nothing was uploaded.",
                "Choose another name, or pass --force: the old files stay in the repository's history.",
            )
        if config.private and not found.private:
            raise InputError(
                f"{made.repo_id} is on the Hub already and everybody can see it; nothing was uploaded.",
                "Choose another name, make it private in its settings, or pass --no-private.",
            )
        report(Note(f"Uploading {len(files)} files to {made.repo_id} ..."))
        message = "Upload with mlx-distill"
        api.upload_folder(
            repo_id=made.repo_id, folder_path=config.model, allow_patterns=list(files), commit_message=message
        )
    return PushResult(made.repo_id, str(made), config.private, len(files), sum(files.values()))
