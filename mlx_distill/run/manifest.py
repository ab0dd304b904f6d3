"""Manifests: settings, inputs and outputs of a finished stage, to decide quickly whether it must run again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import msgspec

from mlx_distill import device
from mlx_distill.storage.atomic import write_json
from mlx_distill.storage.file_states import FileState, states_of


class Manifest(msgspec.Struct, frozen=True):
    """The record of one finished stage."""

    stage: str
    settings: dict[str, Any]
    inputs: dict[str, FileState]
    outputs: dict[str, FileState]
    versions: dict[str, str]
    seconds: float
    finished_at: str
    summary: str
    """The main figures, for a run that skips the stage."""
    incomplete: str = ""
    """The missing part, for example `2 answers missing`. Empty if the result is complete."""

    @classmethod
    def begin(
        cls, stage: str, settings: dict[str, Any], inputs: Iterable[Path], known: Mapping[str, FileState]
    ) -> Self:
        """Record the settings and inputs of a stage before it runs.

        `known` holds earlier file states, so that large files are not hashed again.
        """
        return cls(stage, settings, states_of(inputs, known), {}, device.versions(), 0.0, "", "")

    def finish(self, outputs: Iterable[Path], seconds: float, summary: str, incomplete: str = "") -> Self:
        """Return the manifest of the stage after it ran."""
        return msgspec.structs.replace(
            self,
            outputs=states_of(outputs),
            seconds=round(seconds, 2),
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
            summary=summary,
            incomplete=incomplete,
        )

    def reason_to_run(self, settings: Mapping[str, Any], inputs: Iterable[Path]) -> str:
        """Return why the stage must run again, in a few words. Empty if nothing changed."""
        changed = sorted(name for name in {*settings, *self.settings} if settings.get(name) != self.settings.get(name))
        if changed:
            return f"{', '.join(changed)} changed"
        outputs = states_of(map(Path, self.outputs), self.outputs)
        if missing := [path for path in self.outputs if path not in outputs]:
            return f"{Path(missing[0]).name} is missing"
        differ = _differences(self.outputs, outputs) + _differences(self.inputs, states_of(inputs, self.inputs))
        return f"{Path(differ[0]).name} changed" if differ else self.incomplete

    def outputs_unchanged(self) -> bool:
        """Return whether no output was edited, so that the stage may replace them. A missing output is not an edit."""
        existing = states_of(map(Path, self.outputs), self.outputs)
        return not _differences({path: self.outputs[path] for path in existing}, existing)

    def save(self, path: Path) -> None:
        write_json(path, self)

    @classmethod
    def load(cls, path: Path) -> Manifest | None:
        """Return the manifest at `path`, or None if it cannot be read: then the stage runs again."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


def _differences(before: Mapping[str, FileState], now: Mapping[str, FileState]) -> list[str]:
    """Return the paths that are new, gone, or have other contents."""
    hashes = [{path: state.sha256 for path, state in states.items()} for states in (before, now)]
    return sorted(path for path in {*before, *now} if hashes[0].get(path) != hashes[1].get(path))


def known_states(folder: Path) -> dict[str, FileState]:
    """Return the file states in all manifests of a folder. They avoid hashing the same weights for several stages."""
    known: dict[str, FileState] = {}
    for file in sorted(folder.glob("*.json")):
        manifest = Manifest.load(file)
        if manifest:
            known.update(manifest.inputs)
            known.update(manifest.outputs)
    return known
