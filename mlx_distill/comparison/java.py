"""Java in answers, parsed by the `javac` on the PATH where there is one. Nothing is compiled and nothing is run."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 30.0
"""javac takes about one; beyond this the blocks count as not checked."""
_ARGUMENTS = (
    "-J-Xmx256m",
    "-J-Duser.language=en",  # its errors are read here
    "-J-XX:TieredStopAtLevel=1",  # less to warm up
    "-version",
    "-proc:none",
    "-implicit:none",
    "-encoding",
    "UTF-8",
    "-Xmaxerrs",
    "100000",
    "-XDshould-stop.ifError=PARSE",
    "-XDshould-stop.ifNoError=PARSE",
)
_ERROR = re.compile(r"^(?P<block>\d+)_(?P<form>\d)\.java:(?P<line>\d+): error: (?P<message>.*)$", re.MULTILINE)


@dataclass(frozen=True)
class JavaFaults:
    """What javac says."""

    version: str
    """Such as `javac 17.0.15`."""
    faults: tuple[str, ...]
    """Why each block does not parse; "" where it does."""


def java_faults(blocks: Sequence[str]) -> JavaFaults | None:
    """Whether each block is Java by javac's grammar: a whole file, or members of a class, or statements.

    Names, types and library calls are not looked at. None where no JDK is on the PATH or it does not work. One process
    for all blocks, since starting it is what takes time; one each where a block breaks the compiler.
    """
    javac = shutil.which("javac")
    if not javac:
        return None
    try:
        version, faults = _parse(javac, blocks)
        if version and faults is None:
            alone = [_parse(javac, [code])[1] for code in blocks]
            faults = [found[0] if found else "breaks javac, as code nested too deeply does" for found in alone]
    except (OSError, subprocess.TimeoutExpired):
        return None
    return JavaFaults(version, tuple(faults)) if version and faults is not None else None


def _parse(javac: str, blocks: Sequence[str]) -> tuple[str, list[str] | None]:
    """(version, each block's fault or ""); no version from macOS's stub for a JDK, no faults after a crash."""
    with tempfile.TemporaryDirectory(prefix="mlx-distill-java-") as name:
        files = []
        for number, code in enumerate(blocks):
            for form, text in enumerate(_forms(code)):
                file = Path(name, f"{number}_{form}.java")
                file.write_text(text, encoding="utf-8", errors="replace")
                files.append(file.name)
        done = subprocess.run(
            [javac, *_ARGUMENTS, *files],
            cwd=name,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    said = done.stdout + done.stderr
    found = re.search(r"^javac \S+", said, re.MULTILINE)
    version = found.group() if found else ""
    wrong: dict[tuple[int, int], str] = {}
    for error in _ERROR.finditer(said):
        wrong.setdefault((int(error["block"]), int(error["form"])), f"line {error['line']}: {error['message']}")
    if done.returncode not in (0, 1) or (done.returncode == 1 and not wrong):
        return version, None
    forms = range(len(_forms("")))
    return version, [
        wrong[number, 0] if all((number, form) in wrong for form in forms) else "" for number in range(len(blocks))
    ]


def _forms(code: str) -> tuple[str, str, str]:
    """The block as a file, as members of a class and as statements; imports stay in front, lines keep their numbers."""
    imports, rest = list[str](), list[str]()
    for line in code.split("\n"):
        is_import = re.match(r"\s*(import\s+[\w.*\s]+|package\s+[\w.\s]+);\s*$", line)
        (imports if is_import else rest).append(line)
    head, body = " ".join(imports), "\n".join(rest)
    members = f"{head} class Block {{ {body}\n}}\n"
    return code, members, f"{head} class Block {{ void run() {{ {body}\n}} }}\n"
