"""Errors of the Hugging Face Hub in the user's words, for `convert` and `push`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from httpx2 import HTTPError
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mlx_distill.errors import DistillError, InputError, MachineError
from mlx_distill.formatting import first_line

_LOG_IN = "log in with `hf auth login` (or set HF_TOKEN), then run the same command again."


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
