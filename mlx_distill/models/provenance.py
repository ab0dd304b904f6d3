"""`mlx_distill.json` in a converted folder: what it was made from, how, and whether it still is that."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_distill.storage.atomic import write_json
from mlx_distill.storage.file_states import FileState, states_of

PROVENANCE_FILE = "mlx_distill.json"


@dataclass(frozen=True)
class Provenance:
    """The record of one conversion."""

    source: str
    """As the user gave it."""
    kind: str
    revision: str
    """The commit of a Hub repository; empty for files."""
    settings: Mapping[str, Any]
    """The settings that decide what comes out."""
    result: Mapping[str, Any]
    """The figures the conversion ended with."""
    versions: Mapping[str, str]
    inputs: Mapping[str, FileState]
    """The source's files by absolute path; empty where a revision pins them."""
    outputs: Mapping[str, FileState]
    """The folder's files by name."""

    def changed_inputs(self) -> list[str]:
        """Names of source files that are there and differ from those it was made from.

        A source that is gone changes nothing: the result stands.
        """
        now = states_of([Path(path) for path in self.inputs], self.inputs)
        return [Path(path).name for path, state in now.items() if state.sha256 != self.inputs[path].sha256]

    def missing_outputs(self, folder: Path) -> list[str]:
        """Names of files that are no longer in the folder."""
        return [name for name in self.outputs if not (folder / name).exists()]

    def edited_outputs(self, folder: Path) -> list[str]:
        """Names of files in the folder that are no longer as they were made."""
        known = {str(folder / name): state for name, state in self.outputs.items()}
        now = states_of(map(Path, known), known)
        return [Path(path).name for path, state in now.items() if state.sha256 != known[path].sha256]

    def save(self, folder: Path) -> None:
        """Write the record into `folder`."""
        write_json(folder / PROVENANCE_FILE, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Provenance | None:
        """The record in `folder`, or None where there is none that can be read."""
        try:
            data = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
            for name in ("inputs", "outputs"):
                data[name] = {file: FileState(**state) for file, state in data[name].items()}
            return cls(**data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


def output_states(folder: Path) -> dict[str, FileState]:
    """The states of a folder's files by name, the record itself left out."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != PROVENANCE_FILE)
    return {Path(path).name: state for path, state in states_of(files).items()}
