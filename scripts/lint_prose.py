"""Check the plain-English rules that a program can check: docstring openings, banned phrases, names.

usage: lint_prose.py [FILE OR FOLDER ...]   prints file:line: message for each problem; exit code 1 if there is one
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_PATHS = ("mlx_distill", "tests", "scripts", "docs", "adapters", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
TEXT_SUFFIXES = {".md", ".sh", ".html", ".css", ""}
SKIPPED = {"lint_prose.py", "test_lint_prose.py"}
"""Files that name the banned phrases."""
MAX_TEST_NAME = 60

OPENING = re.compile(r"(Of|By|In|As|For|So|What|Whether|Where|Who|How(?! (?:often|many|much|long)\b))\s")
NAME = re.compile(r"_?(most|fewest|longest)_(?!common)", re.IGNORECASE)
ADVICE = {
    r"(?:is|are|was|were)\s+no(?!\s+(?:longer|more|less))": "write 'is not a' or 'there is no'",
    r"lets?\s+(?:it\s+|them\s+)?be": "write 'leave unchanged'",
    r"anew": "write 'again'",
    r"mend(?:s|ed|ing)?": "write 'fix'",
    r"learnt": "write 'learned'",
    r"who(?:so)?ever": "write 'anyone who' or name the reader",
    r"beside": "write 'next to' or 'with'",
    r"of\s+(?:its|their)\s+own\s+accord": "write 'automatically'",
    r"lest|whence|whereupon|thereof|hitherto|in\s+vain": "use a common word",
}
ALLOWED = r"there\s+(?:\w+\s+)?(?:is|are|was|were)\s+no"
PHRASES = re.compile(
    rf"\b(?:{ALLOWED}|" + "|".join(f"(?P<p{number}>{phrase})" for number, phrase in enumerate(ADVICE)) + r")\b",
    re.IGNORECASE,
)

Problem = tuple[int, str]


def check_text(text: str, first_line: int = 1) -> Iterator[Problem]:
    """Yield the banned phrases of a text that starts at `first_line`."""
    for match in PHRASES.finditer(text):
        if match.lastgroup:
            advice = list(ADVICE.values())[int(match.lastgroup[1:])]
            phrase = " ".join(match.group().split())
            yield first_line + text.count("\n", 0, match.start()), f"'{phrase}': {advice}"


def check_python(source: str) -> Iterator[Problem]:
    """Yield the problems of a Python file: its strings, comments, docstrings and names."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and NAME.match(token.string):
            yield token.start[0], f"name '{token.string}': write max_, min_ or n_"
        elif token.type != tokenize.NAME and token.type != tokenize.OP and token.string.strip():
            yield from check_text(token.string, token.start[0])
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))) if opening := OPENING.match(text.lstrip()):
                yield node.lineno, f"docstring starts with '{opening[1]}': start with a verb or a noun phrase"
            case ast.FunctionDef(name=name) if name.startswith("test_") and len(name) > MAX_TEST_NAME:
                yield node.lineno, f"test name has {len(name)} characters: use at most {MAX_TEST_NAME}"


def files_under(path: Path) -> Iterator[Path]:
    """Yield a file itself, or every Python and text file of a folder."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        hidden = any(part.startswith((".", "__pycache__")) for part in file.relative_to(path).parts)
        if file.is_file() and not hidden and file.suffix in {".py", *TEXT_SUFFIXES} and file.name not in SKIPPED:
            yield file


def main(arguments: list[str]) -> int:
    """Check the given paths (default: the repository's); return the exit code."""
    paths = [Path(argument) for argument in arguments] or [ROOT / name for name in DEFAULT_PATHS]
    n_problems = 0
    for file in (file for path in paths if path.exists() for file in files_under(path)):
        check = check_python if file.suffix == ".py" else check_text
        for line, message in sorted(check(file.read_text(encoding="utf-8"))):
            print(f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}:{line}: {message}")
            n_problems += 1
    return 1 if n_problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
