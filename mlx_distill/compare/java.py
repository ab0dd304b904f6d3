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
    faults: tuple[str | None, ...]
    """Why each block does not parse; "" where it does, None where it is in a grammar that this javac does not have."""
    newer: tuple[str, ...]
    """What each block uses of a later Java than this javac's, which therefore is not checked; "" for nothing."""


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
    if not version or faults is None:
        return None
    newer = [_newer(code, version) for code in blocks]
    judged = [
        None if fault and (_IS_NEWER_GRAMMAR.search(fault) or any(map(_is_grammar, used))) else fault
        for fault, used in zip(faults, newer, strict=True)
    ]
    return JavaFaults(version, tuple(judged), tuple(", ".join(used) for used in newer))


NEWER = (
    ("virtual threads", 21, r"\bnewVirtualThreadPerTaskExecutor\b|\bofVirtual\b|\bstartVirtualThread\b|\bisVirtual\b"),
    ("sequenced collections", 21, r"\bSequenced(?:Collection|Set|Map)\b|\.(?:reversed|getFirst|getLast)\(\)"),
    ("structured concurrency", 25, r"\bStructuredTaskScope\b"),
    ("scoped values", 25, r"\bScopedValue\b"),
    ("stream gatherers", 24, r"\bGatherers?\b"),
    ("Future.resultNow", 19, r"\bresultNow\b"),
    ("Stream.mapMulti or toList", 16, r"\bmapMulti\b|\.toList\(\)"),
    ("record patterns", 21, r"\b(?:instanceof|case)\s+[A-Z]\w*(?:<[^<>]*>)?\s*\((?!\))"),
    ("type patterns in switch", 21, r"\bcase\s+[A-Z]\w*(?:<[^<>]*>)?\s+\w+\s*(?:->|:|when\b|&&)"),
    ("unnamed variables", 22, r"[(,]\s*_\s*(?:->|[,)])|\b\w+\s+_\s*[=:)]"),
    ("compact source files", 25, r"\A(?:\s*import[^;]*;)*\s*(?:static\s+)?void\s+main\s*\("),
)
"""Things of Java, the release that made each one final, and how they are seen in code. By name alone: a method of the
same name in a class of the answer's own is taken for the library's."""
GRAMMAR = frozenset({"record patterns", "type patterns in switch", "unnamed variables", "compact source files"})
"""Those that an older javac cannot parse; the others it parses without knowing them."""
_IS_NEWER_GRAMMAR = re.compile(r"preview feature|not supported in -source")


def _newer(code: str, version: str) -> list[str]:
    """What `code` uses of a later Java than that of a javac, as `virtual threads (Java 21)`."""
    major = int((re.search(r"\d+", version) or ["0"])[0])
    return [f"{name} (Java {since})" for name, since, seen in NEWER if since > major and re.search(seen, code)]


def _is_grammar(said: str) -> bool:
    return said.rpartition(" (")[0] in GRAMMAR


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
