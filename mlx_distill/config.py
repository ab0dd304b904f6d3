"""Stage settings as frozen dataclasses: one place for names, defaults, help and checks.

A field made with `setting(default, help=...)` is a line of `distill.toml`, an option of the command and a column of
the saved settings. `build` makes the dataclass from a mapping and reports every fault at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from mlx_distill.errors import InputError

Config = TypeVar("Config")


def setting(default: Any = dataclasses.MISSING, *, help: str, choices: tuple[str, ...] = ()) -> Any:
    """A documented field of a stage's config; `help` is one line, without a full stop where it is a phrase."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def table(*, help: str) -> Any:
    """A field that holds a table of distill.toml, empty by default; it has no option on the command line."""
    return dataclasses.field(default_factory=dict, metadata={"help": help, "choices": ()})


def part(config: type[Any]) -> Any:
    """A group of settings as a field: a dataclass of its own at its defaults, a table of its own in `distill.toml`."""
    return dataclasses.field(default=config())


def parts_of(config: type[Any]) -> dict[str, type[Any]]:
    """The groups of settings of a config, by the name of their field."""
    kinds = get_type_hints(config)
    return {field.name: kinds[field.name] for field in dataclasses.fields(config) if _is_part(kinds[field.name])}


def build(config: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Make a config from plain values (TOML, JSON), checking names and types; `where` opens each message.

    The dataclass's own `__post_init__` checks ranges and raises ValueError with one sentence.
    """
    types_of = get_type_hints(config)
    names = [field.name for field in dataclasses.fields(config) if field.init]  # type: ignore[arg-type]
    problems: list[str] = []
    taken: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            problems.append(f"unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
            continue
        try:
            taken[name] = _converted(types_of[name], value)
        except InputError as error:  # of a group of settings
            problems.extend(f"{name}: {problem}" for problem in error.problems)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    missing = [
        field.name
        for field in dataclasses.fields(config)  # type: ignore[arg-type]
        if field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    problems.extend(f"{name} is missing" for name in missing)
    if not problems:
        try:
            return config(**taken)
        except ValueError as error:
            problems.append(str(error))
    raise InputError(f"{where}: {_count(problems)}.", "Mend it and run the command again.", problems)


def to_plain(config: Any) -> dict[str, Any]:
    """A config or result as JSON data, in the order of its fields; paths become text, dataclasses inside it objects."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_plain(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _count(problems: list[str]) -> str:
    return "1 problem" if len(problems) == 1 else f"{len(problems)} problems"


def _converted(kind: Any, value: Any) -> Any:
    """`value` as `kind`, without guessing: a number is not text, text is not a number, true is not 1."""
    if get_origin(kind) in (Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        if value is None and len(options) < len(get_args(kind)):
            return None
        return _converted(options[0], value)
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{value!r} is not a list")
        return tuple(_converted(get_args(kind)[0], item) for item in value)
    if get_origin(kind) is Mapping:
        return _table(get_args(kind)[1], value)
    if _is_part(kind):
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"{value!r} is not a table")
        return build(kind, value, kind.__name__)
    if kind is Path:
        if isinstance(value, (str, Path)) and str(value):
            return Path(value)
        raise ValueError(f"{value!r} is not a path")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    raise ValueError(f"{value!r} is not {names.get(kind, kind)}")


def _table(kind: Any, value: Any) -> dict[str, Any]:
    """A table whose values are all of one kind; ValueError names every one that is not."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is not a table")
    taken: dict[str, Any] = {}
    problems: list[str] = []
    for name, item in value.items():
        try:
            taken[name] = _converted(kind, item)
        except InputError as error:
            problems.append(f"{name}: {'; '.join(error.problems)}")
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ValueError("; ".join(problems))
    return taken
