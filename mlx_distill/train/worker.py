"""Training as a process of its own: `python -m mlx_distill.train.worker CONFIG.json`.

An out-of-memory abort on a GPU ends the process that caused it; run this way it is not the one that holds the rest
of the job. Events, and at the end the result or the error, go to standard output as one JSON object a line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mlx_distill import device
from mlx_distill.config import parse
from mlx_distill.errors import DistillError
from mlx_distill.events import Event, Note, Progress, Warning
from mlx_distill.train import TrainConfig

KINDS = {Note: "note", Warning: "caution", Progress: "progress"}


def main(path: Path) -> int:
    """Train by the config in the JSON file `path`; the exit code is that of the command."""
    config = parse(TrainConfig, json.loads(path.read_text(encoding="utf-8")), str(path))
    device.prepare()
    from mlx_distill.train.run import run

    try:
        result = run(config, _report)
    except DistillError as error:
        fields = {"message": error.message, "next_step": error.next_step, "problems": list(error.problems)}
        _say({"error": {**fields, "exit_code": error.exit_code}})
        return error.exit_code
    _say({"result": {name: str(value) if isinstance(value, Path) else value for name, value in vars(result).items()}})
    return 0


def _report(event: Event) -> None:
    _say({"event": KINDS[type(event)], **vars(event)})


def _say(data: dict[str, Any]) -> None:
    print(json.dumps(data), flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
