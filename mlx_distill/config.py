"""Settings: one annotated field gives the command-line option, the line of `distill.toml`, the check and the docs.

    class TrainConfig(Config, frozen=True):
        epochs: Annotated[int, doc("passes over the training rows", ge=1)] = 3
        method: Annotated[Literal["lora", "full"], doc("...")] = "lora"
        filter: FilterConfig = FilterConfig()  # a group: its own table in the file

`parse` builds a config from plain values and reports all problems together. Constructing a config directly makes the
same checks.
"""

from __future__ import annotations

import difflib
import functools
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from mlx_distill.errors import InputError
from mlx_distill.formatting import plural

C = TypeVar("C", bound="Config")


def doc(text: str, **limits: Any) -> msgspec.Meta:
    """Return the help text and the limits (`ge`, `gt`, `le`, `lt`, `pattern`) of a setting."""
    return msgspec.Meta(description=text, **limits)


class Config(msgspec.Struct, frozen=True):
    """Base of all settings. Raises ValueError, with one problem a line, for values that fail their checks."""

    renamed: ClassVar[Mapping[str, str]] = {}
    """Old names of settings, and the new ones that the error message gives."""
    removed: ClassVar[Mapping[str, str]] = {}
    """Settings that no longer exist, and the reason that the error message gives."""

    def __post_init__(self) -> None:
        problems = [
            problem
            for field in fields_of(type(self))
            if not isinstance(value := getattr(self, field.name), Config)
            for problem in field.convert(value)[1]
        ]
        if not problems:
            try:
                self.check()
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values, checked again."""
        return msgspec.structs.replace(self, **changes)

    def check(self) -> None:
        """Raise ValueError for settings that contradict each other. Field types and ranges are already checked."""


class Field(msgspec.Struct, frozen=True):
    """One setting, as options, files and docs need it."""

    name: str
    type: Any
    """The annotated type, as msgspec checks it."""
    plain_type: type
    """bool, int, float, str or Path; for a list, the type of its items; otherwise the type as it is."""
    default: Any
    """`msgspec.NODEFAULT` for a required setting."""
    help: str
    choices: tuple[str, ...]
    is_list: bool
    is_table: bool
    """A mapping: it has no option, only a table in the file."""
    group: type[Config] | None
    """The config of a group of settings."""

    @property
    def required(self) -> bool:
        return self.default is msgspec.NODEFAULT

    def convert(self, value: Any) -> tuple[Any, list[str]]:
        """Check one value; return it with its problems."""
        if self.choices and value is not None:
            items = value if self.is_list and isinstance(value, (list, tuple)) else [value]
            bad = [item for item in items if item not in self.choices]
            if bad:
                return None, [f"{self.name}: {bad[0]!r} is not one of {', '.join(self.choices)}"]
        if self.is_table and isinstance(value, Mapping):
            return self._convert_table(value)
        try:
            return msgspec.convert(value, self.type, dec_hook=_to_path), []
        except msgspec.ValidationError as error:
            return None, [f"{self.name} = {_short_repr(value)}: {_problem(error)}"]

    def _convert_table(self, value: Mapping[str, Any]) -> tuple[Any, list[str]]:
        _, item_type = get_args(_unannotated(self.type))
        items: dict[str, Any] = {}
        problems: list[str] = []
        for name, item in value.items():
            try:
                if isinstance(item, Mapping) and issubclass(item_type, Config):
                    items[name] = parse(item_type, item, name)  # refuses unknown settings, which msgspec ignores
                else:
                    items[name] = msgspec.convert(item, item_type, dec_hook=_to_path)
            except InputError as error:
                problems.append(f"{self.name}.{name}: {', '.join(error.problems)}")
            except (msgspec.ValidationError, ValueError) as error:
                problems.append(f"{self.name}.{name}: {_problem(error)}")
        return items, problems


@functools.cache
def fields_of(config: type[Config]) -> tuple[Field, ...]:
    """Return the settings of a config in their order."""
    hints = get_type_hints(config, include_extras=True)
    return tuple(_field(info, hints[info.name]) for info in msgspec.structs.fields(config))


def default_of(config: type[Config], name: str) -> Any:
    """Return the default value of a setting."""
    return next(field.default for field in fields_of(config) if field.name == name)


def parse(config: type[C], values: Mapping[str, Any], where: str) -> C:
    """Build a config from plain values (TOML, JSON, options). InputError starts with `where` and lists all problems."""
    fields = {field.name: field for field in fields_of(config)}
    parsed: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in values.items():
        field = fields.get(name)
        if field is None:
            problems.append(_unknown_setting(name, config))
        elif field.group and isinstance(value, Mapping):
            try:
                parsed[name] = parse(field.group, value, name)
            except InputError as error:
                problems += [f"{name}: {problem}" for problem in error.problems]
        else:
            parsed[name], found = field.convert(value)
            problems += found
    problems += [f"{name} is missing" for name, field in fields.items() if field.required and name not in values]
    if not problems:
        try:
            return config(**parsed)
        except ValueError as error:
            problems += str(error).splitlines()
    raise InputError(f"{where}: {plural(len(problems), 'problem')}.", "Fix it and run the command again.", problems)


def to_plain(value: Any) -> Any:
    """Return a config, record or result as JSON data: paths become text, structs objects, and tuples lists."""
    return _lists(msgspec.to_builtins(value, enc_hook=path_to_text, str_keys=True))


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lists(item) for name, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (tuple, list)) else value


def _unknown_setting(name: str, config: type[Config]) -> str:
    if name in config.renamed:
        return f"{name} is called {config.renamed[name]} now"
    if name in config.removed:
        return f"{name} no longer exists: {config.removed[name]}"
    close = difflib.get_close_matches(name, config.__struct_fields__, n=1)
    return f"unknown setting {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")


def _field(info: msgspec.structs.FieldInfo, annotated: Any) -> Field:
    default = info.default if info.default_factory is msgspec.NODEFAULT else info.default_factory()
    options = [option for option in get_args(annotated) if option is not type(None)]
    is_union = get_origin(annotated) in (typing.Union, types.UnionType)
    inner = options[0] if is_union else annotated
    metas = [extra for extra in getattr(inner, "__metadata__", ()) if isinstance(extra, msgspec.Meta)]
    text = next((meta.description for meta in metas if meta.description), "")
    plain = _unannotated(inner)
    is_list = get_origin(plain) is tuple
    if is_list:
        plain = _unannotated(get_args(plain)[0])
    choices = tuple(get_args(plain)) if get_origin(plain) is Literal else ()
    group = plain if isinstance(plain, type) and issubclass(plain, Config) else None
    is_table = get_origin(plain) is not None and not choices
    return Field(info.name, annotated, str if choices else plain, default, text, choices, is_list, is_table, group)


def _unannotated(annotated: Any) -> Any:
    return get_args(annotated)[0] if hasattr(annotated, "__metadata__") else annotated


def _to_path(wanted: type, value: Any) -> Any:
    if wanted is Path and isinstance(value, (str, Path)) and str(value):
        return Path(value)
    raise ValueError(f"expected {'a path' if wanted is Path else wanted.__name__}")


def path_to_text(value: Any) -> Any:
    """Encode a path for msgspec."""
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _short_repr(value: Any) -> str:
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _problem(error: Exception) -> str:
    """Return the message of msgspec or of a check, without backticks, to stand after a colon."""
    text = str(error).replace("`", "")
    return text[:1].lower() + text[1:]
