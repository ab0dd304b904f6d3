"""What a finished stage was made from, so that a rerun can tell in milliseconds that nothing has changed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_distill.records import content_hash
from mlx_distill.storage.atomic import write_json
from mlx_distill.storage.file_states import FileState, states_of


@dataclass(frozen=True)
class Manifest:
    """The record of one finished stage."""

    stage: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, FileState]
    outputs: Mapping[str, FileState]
    versions: Mapping[str, str]
    seconds: float
    finished_at: str
    result: Mapping[str, Any]
    """The figures the stage ended with, for the final table of a run that skips it."""

    def is_current(self, settings: Mapping[str, Any], inputs: Iterable[Path]) -> str:
        """ "" where nothing has changed; otherwise the reason to run the stage again, in a few words."""
        if content_hash(settings) != content_hash(self.settings):
            changed = [name for name in settings if settings[name] != self.settings.get(name)]
            return f"{', '.join(changed) or 'settings'} changed"
        for path, before in self.outputs.items():
            now = states_of([Path(path)], self.outputs).get(path)
            if now is None:
                return f"{Path(path).name} is gone"
            if now.sha256 != before.sha256:
                return f"{Path(path).name} was changed"
        now_inputs = states_of(inputs, self.inputs)
        for path in {*now_inputs, *self.inputs}:
            now, old = now_inputs.get(path), self.inputs.get(path)
            if now is None or old is None or now.sha256 != old.sha256:
                return f"{Path(path).name} changed"
        return ""

    def save(self, path: Path) -> None:
        write_json(path, {name: _plain(value) for name, value in vars(self).items()})

    @classmethod
    def load(cls, path: Path) -> Manifest | None:
        """The manifest at `path`, or None where there is none that can be read: then the stage runs again."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            for name in ("inputs", "outputs"):
                data[name] = {file: FileState(**state) for file, state in data[name].items()}
            return cls(**data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return vars(value) if isinstance(value, FileState) else value
