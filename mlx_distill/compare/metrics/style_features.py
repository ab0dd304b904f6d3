"""Structural habits in code that parses: docstrings, type hints, helper functions, CTEs and the like."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable

from sqlglot import exp

from mlx_distill.code_blocks.blocks import Syntax, code_blocks
from mlx_distill.code_blocks.syntax import parse_sql
from mlx_distill.compare.models import Comparison
from mlx_distill.compare.table import Table, share

FEATURES = {
    "docstrings": "functions that open with a docstring",
    "type hints": "functions with every parameter and the result annotated",
    "helper functions": "functions that another function of the block calls",
    "context managers": "blocks that use `with` or define a context manager",
    "CTEs": "SQL statements with a common table expression",
    "window functions": "SQL statements with an OVER clause",
    "joins": "SQL statements with a join, or a comma in FROM",
}
"""Feature to what it counts."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def style_features(data: Comparison) -> Table | None:
    """Count features in the blocks that parse; None if there are none."""
    seen: dict[str, list[list[bool]]] = defaultdict(lambda: [[] for _ in data.names])
    for column, (_, answers) in enumerate(data.answers_by_name):
        for answer in answers:
            for block, check in zip(code_blocks(answer.text), answer.blocks, strict=True):
                find = FINDERS.get(block.language)
                if find and check.syntax is Syntax.PARSED:
                    for feature, outcomes in find(block.code).items():
                        seen[feature][column] += outcomes
    rows = {
        feature: tuple(share(sum(outcomes), len(outcomes)) for outcomes in seen[feature])
        for feature in FEATURES
        if any(seen[feature])
    }
    if not rows:
        return None
    changed = [
        f"{feature} ({data.a.name} {cells[0].text}, {data.b.name} {cells[1].text})"
        for feature, cells in rows.items()
        if None not in (cells[0].value, cells[1].value) and cells[0].value != cells[1].value
    ]
    return Table(
        id="style_features",
        title="Style of the code",
        columns=data.names,
        rows=rows,
        note=f"In blocks that parse. {'; '.join(f'{name}: {FEATURES[name]}' for name in rows)}.",
        finding=f"Style of the code differs in: {', '.join(changed)}." if changed else "",
    )


def python_features(code: str) -> dict[str, list[bool]]:
    """Return one outcome per function, or one per block."""
    tree = ast.parse(code)
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    calls = [(function, _called_names(function)) for function in functions]
    return {
        "docstrings": [bool(ast.get_docstring(function)) for function in functions],
        "type hints": [_is_annotated(function) for function in functions],
        "helper functions": [
            any(function.name in names for caller, names in calls if caller is not function) for function in functions
        ],
        "context managers": [any(map(_manages_context, ast.walk(tree)))],
    }


def _called_names(function: Function) -> set[str]:
    """Return the names that a function calls, directly or as an attribute (`self.helper()`)."""
    called = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return {node.id if isinstance(node, ast.Name) else getattr(node, "attr", "") for node in called}


def _is_annotated(function: Function) -> bool:
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    if named and named[0].arg in ("self", "cls"):
        named = named[1:]
    return all(argument.annotation for argument in named) and function.returns is not None


def _manages_context(node: ast.AST) -> bool:
    if isinstance(node, Function):
        decorators = {getattr(item, "id", getattr(item, "attr", "")) for item in node.decorator_list}
        return node.name in ("__enter__", "__aenter__") or bool(decorators & {"contextmanager", "asynccontextmanager"})
    return isinstance(node, (ast.With, ast.AsyncWith))


def sql_features(code: str) -> dict[str, list[bool]]:
    """Return one outcome per statement."""
    kinds = {"CTEs": exp.CTE, "window functions": exp.Window, "joins": exp.Join}
    statements, _ = parse_sql(code)
    return {name: [bool(statement.find(kind)) for statement in statements] for name, kind in kinds.items()}


FINDERS: dict[str, Callable[[str], dict[str, list[bool]]]] = {"python": python_features, "sql": sql_features}
