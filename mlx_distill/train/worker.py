"""The child process of `run`'s training: `python -m mlx_distill.train.worker CONFIG.json`.

Events, then the result or the error, go to standard output: one message of `child_process` a line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mlx_distill import device
from mlx_distill.config import parse
from mlx_distill.errors import DistillError
from mlx_distill.train.child_process import Failed, Finished, Message, encode
from mlx_distill.train.config import TrainConfig


def main(path: Path) -> int:
    """Train by the config in a JSON file. Return the exit code that the command has."""
    config = parse(TrainConfig, json.loads(path.read_text(encoding="utf-8")), str(path))
    device.configure_process()
    from mlx_distill.train.run import run  # imports MLX, so after the line above

    try:
        result = run(config, _send)
    except DistillError as error:
        _send(Failed(error.message, error.next_step, error.problems, error.exit_code))
        return error.exit_code
    _send(Finished(result))
    return 0


def _send(message: Message) -> None:
    print(encode(message).decode(), flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
