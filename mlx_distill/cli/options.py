"""Options made from a stage's config, and the config made from distill.toml and the options that were given."""

from __future__ import annotations

import dataclasses
import shlex
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from mlx_distill.config import build, parts_of
from mlx_distill.run.project import Project

Config = TypeVar("Config")
Command = TypeVar("Command", bound=Callable[..., Any])


def config_options(config: type[Any], *, leave_out: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Add one option for each field of `config`, those of its groups too; those not given arrive as None."""

    def decorate(command: Command) -> Command:
        kinds, parts = get_type_hints(config), parts_of(config)
        for field in reversed(dataclasses.fields(config)):
            if field.name in parts:
                command = config_options(parts[field.name])(command)
            elif field.name not in leave_out and get_origin(kinds[field.name]) is not Mapping:  # a table: for the file
                command = _option(field, kinds[field.name])(command)
        return command

    return decorate


def field_help(config: type[Any], name: str) -> str:
    """What a field of `config` means, for an option that is made by hand."""
    return next(str(field.metadata["help"]) for field in dataclasses.fields(config) if field.name == name)


def json_option(command: Command) -> Command:
    """`--json`: the result as one JSON object on standard output."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")(command)


def resolve(config: type[Config], stage: str, flags: Mapping[str, Any], *, leave_out: tuple[str, ...] = ()) -> Config:
    """The stage's config: defaults, then distill.toml of this folder where there is one, then the flags given.

    What `leave_out` names is not taken from distill.toml.
    """
    options = {name: value for name, value in flags.items() if value is not None and value != ()}
    project = Project.find(Path())
    if project:
        own = {name: value for name, value in project.values(stage).items() if name not in leave_out}
        values = _grouped(config, own, options)
        return build(config, values, f"{project.file} [{stage}] and the options")
    missing = [
        f"--{field.name.replace('_', '-')}"
        for field in dataclasses.fields(config)  # type: ignore[arg-type]
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in options
    ]
    if missing:
        raise click.UsageError(
            f"This folder has no distill.toml, so {', '.join(missing)} must be given. "
            "(`mlx-distill init NAME` makes a project folder.)"
        )
    return build(config, _grouped(config, {}, options), "options")


def given(**flags: object) -> str:
    """The flags that were given, for another command that has to be told the same: ` --data 'my data'`."""
    return "".join(f" --{name} {shlex.quote(str(value))}" for name, value in flags.items() if value is not None)


def _grouped(config: type[Any], values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the options over them, those of a group of settings in its own table."""
    merged = {**values, **given}
    for name, kind in parts_of(config).items():
        inside = {field.name for field in dataclasses.fields(kind)}
        options = {option: merged.pop(option) for option in inside & given.keys()}
        table = merged.get(name, {})
        if options and isinstance(table, Mapping):
            merged[name] = {**table, **options}
    return merged


def _option(field: dataclasses.Field[Any], kind: Any) -> Callable[[Command], Command]:
    flag = field.name.replace("_", "-")
    text = field.metadata.get("help", "")
    if field.default not in (dataclasses.MISSING, None, "", ()) and not isinstance(field.default, bool):
        text = f"{text}  [default: {field.default}]"
    plain, multiple = _plain_kind(kind)
    if plain is bool:
        return click.option(f"--{flag}/--no-{flag}", field.name, default=None, help=text)
    choices = field.metadata.get("choices")
    type_of: Any = click.Choice(choices) if choices else click.Path(path_type=Path) if plain is Path else plain
    return click.option(f"--{flag}", field.name, type=type_of, multiple=multiple, default=None, help=text)


def _plain_kind(kind: Any) -> tuple[type, bool]:
    """The one type an option takes, and whether it may be given several times."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(option for option in get_args(kind) if option is not type(None))
    if get_origin(kind) is tuple:
        return get_args(kind)[0], True
    return kind, False
