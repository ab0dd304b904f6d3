"""The process that `execution` starts: sets its own limits, then runs the blocks. It imports nothing of this package.

python -I runner.py FOLDER     reads FOLDER/blocks.json, writes a line to FOLDER/outcomes.jsonl after each block
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Run every block in one namespace."""
    given = json.loads((folder / "blocks.json").read_text())
    outcomes = os.open(folder / "outcomes.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    limit(given["limits"])
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, code in enumerate(given["blocks"], start=1):
        why = run(code, f"<block {number}>", namespace)
        os.write(outcomes, (json.dumps(why) + "\n").encode())
    os._exit(0)  # threads that a block left behind are not waited for


def limit(limits: dict[str, Any]) -> None:
    """Limits that the system holds and that cannot be raised again."""
    for kind, value in (
        (resource.RLIMIT_CPU, int(limits["seconds"]) + 1),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["n_open_files"]),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # a system that does not have this limit, or a lower one
            resource.setrlimit(kind, (value, value))


def run(code: str, name: str, namespace: dict[str, Any]) -> str:
    """Why `code` did not run to its end; "" where it did."""
    try:
        exec(compile(code, name, "exec", dont_inherit=True), namespace)
    except SystemExit as error:
        return "" if error.code in (None, 0) else f"exits with {error.code}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:1000]
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
