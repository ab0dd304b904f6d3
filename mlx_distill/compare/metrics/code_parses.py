"""Share of the code blocks that are complete and parse, and of those that run, if they were run."""

from __future__ import annotations

import importlib.metadata
import platform

from mlx_distill.code_blocks.blocks import Syntax
from mlx_distill.code_blocks.execution import Limits
from mlx_distill.compare.models import Comparison
from mlx_distill.compare.report import LANGUAGES, Execution, language_name
from mlx_distill.compare.table import Table, share


def code_parses(data: Comparison) -> Table | None:
    """Count the blocks that parse; None if no answer contains code that is checked here."""
    blocks_by_name = [[block for answer in answers for block in answer.blocks] for _, answers in data.answers_by_name]
    rows = {}
    for language, name in LANGUAGES.items():
        checked = [
            [block for block in blocks if block.language == language and block.syntax is not Syntax.NOT_CHECKED]
            for blocks in blocks_by_name
        ]
        if any(checked):
            rows[f"{name} blocks that parse"] = tuple(
                share(sum(block.syntax is Syntax.PARSED for block in blocks), len(blocks)) for blocks in checked
            )
    ran = [[block for block in blocks if block.execution is not Execution.NOT_RUN] for blocks in blocks_by_name]
    if any(ran):
        rows["Python blocks that run to the end"] = tuple(
            share(sum(block.execution is Execution.FINISHED for block in blocks), len(blocks)) for blocks in ran
        )
    if not rows:
        return None
    others = {language_name(b.language) for blocks in blocks_by_name for b in blocks if b.syntax is Syntax.NOT_CHECKED}
    unchecked = f" Not checked: {', '.join(sorted(others))}." if others else ""
    execution = (
        "Python blocks that parse were run, those of an answer one after another in one process, with "
        f"{Limits().describe()}. A block that only defines functions calls none of them. SQL and Java were not run."
        if any(ran)
        else "No code was run."
    )
    return Table(
        id="code_parses",
        title="Code in the answers",
        columns=data.names,
        rows=rows,
        note=(
            "A block counts if it is complete and parses, which does not prove that it is right. Parsers: Python "
            f"{platform.python_version()}, sqlglot {importlib.metadata.version('sqlglot')} (any of its own, "
            "PostgreSQL, MySQL, SQLite, T-SQL and Oracle dialects), tree-sitter-java "
            f"{importlib.metadata.version('tree-sitter-java')}.{unchecked} {execution}"
        ),
        finding="; ".join(
            f"{label}: " + ", ".join(f"{name} {cell.text}" for name, cell in zip(data.names, cells, strict=True))
            for label, cells in rows.items()
        )
        + ".",
    )
