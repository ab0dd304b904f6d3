"""Options made from a stage's config, and the config made from distill.toml and the options that were given."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from mlx_distill.config import Config, Field, fields_of, parse
from mlx_distill.run.project import Project

C = TypeVar("C", bound=Config)
Command = TypeVar("Command", bound=Callable[..., Any])


def config_options(config: type[Config], *, leave_out: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Add one option for each field of `config`, those of its groups too; those not given arrive as None."""

    def decorate(command: Command) -> Command:
        for field in reversed(fields_of(config)):
            if field.group:
                command = config_options(field.group)(command)
            elif field.name not in leave_out and not field.is_table:  # a table is for the file
                command = _option(field)(command)
        return command

    return decorate


def field_help(config: type[Config], name: str) -> str:
    """The help of a setting, for an option that is made by hand."""
    return next(field.help for field in fields_of(config) if field.name == name)


def json_option(command: Command) -> Command:
    """`--json`: the result as one JSON object on standard output."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")(command)


def resolve(config: type[C], stage: str, flags: Mapping[str, Any], *, leave_out: tuple[str, ...] = ()) -> C:
    """The stage's config: defaults, then distill.toml of this folder where there is one, then the flags given.

    What `leave_out` names is not taken from distill.toml.
    """
    options = {name: value for name, value in flags.items() if value is not None and value != ()}
    project = Project.find(Path())
    if project:
        own = {name: value for name, value in project.values(stage).items() if name not in leave_out}
        values = _grouped(config, own, options)
        return parse(config, values, f"{project.file} [{stage}] and the options")
    missing = [
        f"--{field.name.replace('_', '-')}"
        for field in fields_of(config)
        if field.required and field.name not in options
    ]
    if missing:
        raise click.UsageError(
            f"This folder has no distill.toml, so {', '.join(missing)} must be given. "
            "(`mlx-distill init NAME` makes a project folder.)"
        )
    return parse(config, _grouped(config, {}, options), "options")


def given(**flags: object) -> str:
    """The flags that were given, for another command that has to be told the same: ` --data 'my data'`."""
    return "".join(f" --{name} {shlex.quote(str(value))}" for name, value in flags.items() if value is not None)


def _grouped(config: type[Config], values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the options over them; options of a group go into its own table."""
    merged = {**values, **given}
    for field in fields_of(config):
        if field.group:
            options = {inner.name: merged.pop(inner.name) for inner in fields_of(field.group) if inner.name in given}
            table = merged.get(field.name, {})
            if options and isinstance(table, Mapping):
                merged[field.name] = {**table, **options}
    return merged


def _option(field: Field) -> Callable[[Command], Command]:
    flag = field.name.replace("_", "-")
    text = field.help
    if not field.required and field.default not in (None, "", (), Path()) and not isinstance(field.default, bool):
        text = f"{text}  [default: {field.default}]"
    if field.plain_type is bool:
        return click.option(f"--{flag}/--no-{flag}", field.name, default=None, help=text)
    kind: Any = (
        click.Choice([choice for choice in field.choices if choice])
        if field.choices
        else click.Path(path_type=Path)
        if field.plain_type is Path
        else field.plain_type
    )
    return click.option(f"--{flag}", field.name, type=kind, multiple=field.is_list, default=None, help=text)
