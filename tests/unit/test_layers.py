"""The layout: imports point one way, and stages do not import one another."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import mlx_distill

PACKAGE = Path(mlx_distill.__file__).parent

LAYERS = (
    {"errors", "formatting", "sanitize"},
    {"config", "events", "records", "device", "cpu", "gpu_errors", "storage", "training_run"},
    {"teachers", "models", "code_blocks", "similarity"},
    {"collect", "prepare", "convert", "logprobs", "train", "compare", "fuse", "export", "chat", "serve"},
    {"run"},
    {"cli"},
    {"__main__"},
)
"""Layers from the bottom up. A module imports from lower layers. Below STAGES, also from its own layer."""
STAGES = 3


def layer_of(package: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if package in layer)


def imports(*, lazy: bool = True) -> Iterator[tuple[str, str]]:
    """Yield (importing module, imported module) for the package's imports of itself."""
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        module = ".".join(["mlx_distill", *(part for part in parts if part != "__init__")])
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree) if lazy else tree.body:
            if isinstance(node, ast.Import):
                yield from ((module, name.name) for name in node.names if name.name.startswith("mlx_distill"))
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlx_distill"):
                for name in node.names:
                    full = f"{node.module}.{name.name}"
                    path = PACKAGE.parent / Path(*full.split("."))
                    yield module, full if path.with_suffix(".py").exists() or path.is_dir() else str(node.module)


def test_imports_point_one_way() -> None:
    found = list(imports())
    assert len(found) > 50  # the walk must find the package

    wrong = []
    for importer, imported in found:
        above, below = (name.split(".")[1] if "." in name else "" for name in (importer, imported))
        if above == below or not below or not above:
            continue
        allowed = layer_of(below) < layer_of(above) or (layer_of(below) == layer_of(above) < STAGES)
        if not allowed:
            wrong.append(f"{importer} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for importer, imported in imports():
        if importer != imported:
            graph.setdefault(importer, set()).add(imported)
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in finished:
            for imported in sorted(graph.get(module, ())):
                visit(imported, (*path, module))
            finished.add(module)

    for module in sorted(graph):
        visit(module, ())
