"""Make command-line options from a config, and the config from `distill.toml` and the options of a call."""

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
    """Add one option for each field of `config` and of its groups. Options that are not given arrive as None."""

    def decorate(command: Command) -> Command:
        for field in reversed(fields_of(config)):
            if field.name in leave_out:
                continue
            if field.group:
                command = config_options(field.group)(command)
            elif not field.is_table:  # tables are for the file
                command = _option(field)(command)
        return command

    return decorate


def field_help(config: type[Config], name: str) -> str:
    """Return the help of a setting, for an option that `config_options` does not add."""
    return next(field.help for field in fields_of(config) if field.name == name)


def json_option(command: Command) -> Command:
    """Add `--json`: print the result as one JSON object to standard output."""
    return click.option("--json", "as_json", is_flag=True, help="print the result as one JSON object")(command)


def resolve(config: type[C], section: str, flags: Mapping[str, Any], *, leave_out: tuple[str, ...] = ()) -> C:
    """Build a config: defaults, then the section of this folder's `distill.toml` if it exists, then the given flags.

    Names in `leave_out` are not taken from `distill.toml`.
    """
    options = {name: value for name, value in flags.items() if value is not None and value != ()}
    project = Project.find(Path())
    if project:
        own = {name: value for name, value in project.values(section).items() if name not in leave_out}
        return parse(config, _grouped(config, own, options), f"{project.file} [{section}] and the options")
    missing = [
        f"--{field.name.replace('_', '-')}"
        for field in fields_of(config)
        if field.required and field.name not in options
    ]
    if missing:
        raise click.UsageError(
            f"This folder has no distill.toml, so {', '.join(missing)} must be given. "
            "(`mlx-distill init NAME` creates a project folder.)"
        )
    return parse(config, _grouped(config, {}, options), "options")


def repeat_options(**flags: object) -> str:
    """Return the options of this call that the advised next command needs too: ` --data 'my data'`."""
    return "".join(f" --{name} {shlex.quote(str(value))}" for name, value in flags.items() if value is not None)


def _grouped(config: type[Config], values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the options into the values. The options of a group go into the table of the group."""
    merged = {**values, **options}
    for field in fields_of(config):
        if field.group:
            names = set(field.group.__struct_fields__) - set(config.__struct_fields__)
            inner = {name: merged.pop(name) for name in names if name in options}
            table = merged.get(field.name, {})
            if inner and isinstance(table, Mapping):
                merged[field.name] = {**table, **inner}
    return merged


def _option(field: Field) -> Callable[[Command], Command]:
    flag = field.name.replace("_", "-")
    text = field.help
    if not field.required and field.default not in (None, "", (), Path()) and not isinstance(field.default, bool):
        text = f"{text}  [default: {field.default}]"
    if field.plain_type is bool:
        return click.option(f"--{flag}/--no-{flag}", field.name, default=None, help=text)
    kind: Any = field.plain_type
    if field.choices:
        kind = click.Choice([choice for choice in field.choices if choice])
    elif field.plain_type is Path:
        kind = click.Path(path_type=Path)
    return click.option(f"--{flag}", field.name, type=kind, multiple=field.is_list, default=None, help=text)
