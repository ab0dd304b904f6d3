"""The record of a conversion, `mlx_distill.json` in the model folder: its source, settings and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_distill.errors import DistillError
from mlx_distill.records import Record
from mlx_distill.storage.atomic import write_json
from mlx_distill.storage.file_states import FileState, states_of
from mlx_distill.storage.files import PROVENANCE
from mlx_distill.storage.jsonl import read_json


class Provenance(Record, frozen=True):
    """The record of one conversion."""

    source: str
    """The source as the user gave it."""
    kind: str
    revision: str
    """The commit of a Hub repository. Empty for files."""
    settings: dict[str, Any]
    """The settings that change the result."""
    result: dict[str, Any]
    versions: dict[str, str]
    inputs: dict[str, FileState]
    """The source's files by absolute path. Empty if a revision pins them."""
    outputs: dict[str, FileState]
    """The folder's files by name."""

    def changed_inputs(self) -> list[str]:
        """Return the names of source files that changed. Files that are gone do not count: the result stands."""
        return _changed(self.inputs)

    def missing_outputs(self, folder: Path) -> list[str]:
        """Return the names of recorded files that are missing from the folder."""
        return [name for name in self.outputs if not (folder / name).exists()]

    def edited_outputs(self, folder: Path) -> list[str]:
        """Return the names of the folder's files that changed after the conversion."""
        return _changed({str(folder / name): state for name, state in self.outputs.items()})

    def save(self, folder: Path) -> None:
        """Write the record into `folder`."""
        write_json(folder / PROVENANCE, self.to_json())

    @classmethod
    def load(cls, folder: Path) -> Provenance | None:
        """Read the record in `folder`. None if there is none, or if it is not readable."""
        try:
            return cls.from_json(read_json(folder / PROVENANCE, ""))
        except (DistillError, ValueError):
            return None


def _changed(before: dict[str, FileState]) -> list[str]:
    """Return the names of files that exist with other contents than before."""
    now = states_of(map(Path, before), before)
    return [Path(path).name for path, state in now.items() if state.sha256 != before[path].sha256]


def output_states(folder: Path) -> dict[str, FileState]:
    """Return the states of a folder's files by name, without the record itself."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != PROVENANCE)
    return {Path(path).name: state for path, state in states_of(files).items()}
