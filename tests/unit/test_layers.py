"""The house stands: imports point one way, stages do not know one another, importing one loads nothing heavy."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx_distill
from mlx_distill.run.stages import STAGES

PACKAGE = Path(mlx_distill.__file__).parent

FLOORS = (
    {"errors", "sanitize"},
    {"storage", "device", "records", "events", "config"},
    {"teachers", "models", "code_blocks"},
    {"collect", "prepare", "convert", "train", "compare", "fuse", "export", "chat", "serve"},
    {"run"},
    {"cli"},
    {"__main__"},
)
"""From the ground up. A module imports from floors beneath its own."""
STAGE_FLOOR = 3
COMMON_ROOMS = {0, 1, 2}
"""Floors whose modules may know one another; rooms of the others may not."""

HEAVY = {
    "mlx",
    "mlx_lm",
    "transformers",
    "tokenizers",
    "anthropic",
    "openai",
    "huggingface_hub",
    "gguf",
    "numpy",
    "rich",
}


def room_of(module: str) -> str:
    """`mlx_distill.convert.hub` → `convert`."""
    return module.removeprefix("mlx_distill").strip(".").split(".")[0]


def floor_of(room: str) -> int:
    return next((number for number, floor in enumerate(FLOORS) if room in floor), -1)


def imports() -> Iterator[tuple[str, str]]:
    """(importing module, imported module) for each import of the package by itself, lazy ones too."""
    for file in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(["mlx_distill", *file.relative_to(PACKAGE).with_suffix("").parts])
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((module, name.name) for name in node.names if name.name.startswith("mlx_distill"))
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlx_distill"):
                for name in node.names:
                    whole = f"{node.module}.{name.name}"
                    is_module = (PACKAGE.parent / Path(*whole.split("."))).with_suffix(".py").exists()
                    is_package = (PACKAGE.parent / Path(*whole.split("."))).is_dir()
                    yield module, whole if is_module or is_package else str(node.module)


def test_every_module_has_its_floor() -> None:
    rooms = {room_of(f"mlx_distill.{path.stem}") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    known = set().union(*FLOORS)

    homeless = {room for room in rooms if room not in known and not room.startswith(("_", "__"))}
    assert not homeless, f"give these a floor in {Path(__file__).name}: {sorted(homeless)}"


def test_imports_point_one_way() -> None:
    found = list(imports())
    assert len(found) > 50  # the walk sees something

    wrong = []
    for importer, imported in found:
        above, beneath = room_of(importer), room_of(imported)
        if above == beneath or not beneath:  # the package itself holds only its version
            continue
        floor, other = floor_of(above), floor_of(beneath)
        if other > floor or (other == floor and floor not in COMMON_ROOMS):
            wrong.append(f"{importer} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_importing_every_stage_and_command_loads_nothing_heavy() -> None:
    modules = sorted({stage.config_module or stage.module for stage in STAGES.values()})
    modules += [f"mlx_distill.cli.{file.stem}" for file in sorted((PACKAGE / "cli").glob("*.py"))]
    code = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert not HEAVY & set(json.loads(finished.stdout))
