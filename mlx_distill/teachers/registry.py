"""The teachers by provider. A new teacher is one file and one entry in PROVIDERS."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlx_distill.device import PIP
from mlx_distill.errors import InputError, MissingError
from mlx_distill.models.config import SELF, is_local
from mlx_distill.teachers.base import Teacher


@dataclass(frozen=True)
class Provider:
    """The form of a teacher's name with this provider, and the place of its class."""

    usage: str
    """The form in help texts: `anthropic:MODEL`."""
    factory: str
    """`module:Class`. The class takes the text after the colon; it is imported when the teacher is opened."""
    key_names: tuple[str, ...] = ()
    """Environment variables that hold the API key."""
    address_name: str = ""
    """Environment variable of a server's address. A server of your own needs no key."""
    package: str = ""
    """Import name of an optional package that the teacher needs."""
    install: str = ""
    """Command that installs it."""
    advice: str = ""
    """Advice if there is no key."""


PROVIDERS: dict[str, Provider] = {
    "anthropic": Provider(
        usage="anthropic:MODEL",
        factory="mlx_distill.teachers.anthropic:AnthropicTeacher",
        key_names=("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
        advice="For a Claude teacher: export ANTHROPIC_API_KEY=... (the embedded sample needs no key).",
    ),
    "openai": Provider(
        usage="openai:MODEL[@URL]",
        factory="mlx_distill.teachers.openai:OpenAITeacher",
        key_names=("OPENAI_API_KEY",),
        address_name="OPENAI_BASE_URL",
        package="openai",
        install=f"{PIP} 'mlx-distill[openai]'",
        advice="Set OPENAI_BASE_URL to the server's address, or write openai:MODEL@http://localhost:11434/v1.",
    ),
    "mlx": Provider(usage="mlx:FOLDER or HUB-ID", factory="mlx_distill.teachers.mlx_model:MlxTeacher"),
    SELF: Provider(usage=SELF, factory="mlx_distill.teachers.mlx_model:MlxTeacher"),
    "recorded": Provider(usage="recorded:FILE or FOLDER", factory="mlx_distill.teachers.recorded:RecordedTeacher"),
}

SAMPLE = "recorded:sample"


def teacher_usage() -> str:
    """Return all ways to write a teacher, for help texts."""
    return ", ".join([*(provider.usage for provider in PROVIDERS.values()), SAMPLE])


def provider_of(spec: str) -> Provider:
    """Return the provider of a teacher's name; InputError if it is unknown or the model is missing."""
    name, _, model = spec.partition(":")
    how = f"Write one of: {teacher_usage()}. For example: anthropic:claude-sonnet-4-6"
    if name not in PROVIDERS:
        raise InputError(f"teacher {spec!r}: {name!r} is not one of {', '.join(PROVIDERS)}.", how)
    if not model.strip() and spec != SELF:
        raise InputError(f"teacher {spec!r}: nothing follows {name + ':'!r}.", how)
    return PROVIDERS[name]


@dataclass(frozen=True)
class KeyCheck:
    """The result of checking a teacher's key, as `doctor` reports it."""

    status: Literal["ok", "warning", "problem"]
    text: str
    advice: str = ""


def check_key(spec: str, environment: Mapping[str, str]) -> KeyCheck:
    """Check the package and the API key of a teacher without importing it. Keys are never shown."""
    provider = provider_of(spec)
    if provider.package and importlib.util.find_spec(provider.package) is None:
        return KeyCheck("problem", f"{spec} needs the package {provider.package}", provider.install)
    present = [name for name in provider.key_names if environment.get(name)]
    if present:
        return KeyCheck("ok", f"{present[0]} is set")
    if not provider.key_names:
        return KeyCheck("ok", f"none, and {spec} needs none")
    if provider.address_name and (environment.get(provider.address_name) or "@http" in spec):
        return KeyCheck("ok", "none, and a server of your own needs none")
    return KeyCheck("warning", "none", provider.advice)


def open_teacher(spec: str, student: Path | None = None) -> Teacher:
    """Return the teacher that `spec` names. It reads keys and files only when it is entered.

    `student` is the student's model folder, which only the teacher `self` needs. Raises MissingError if the teacher
    needs a package that is not installed.
    """
    provider = provider_of(spec)
    if provider.package and importlib.util.find_spec(provider.package) is None:
        raise MissingError(f"{spec} needs the package {provider.package}, which is not installed.", provider.install)
    module, _, name = provider.factory.partition(":")
    source = spec.partition(":")[2].strip()
    new = getattr(importlib.import_module(module), name)
    teacher: Teacher = new(source, student) if is_local(spec) else new(source)
    return teacher


def teacher_name(spec: str, student: Path | None) -> str:
    """Return the name of a teacher in requests and records. That of `self` says which student it is."""
    return f"{SELF}:{student.name}" if spec == SELF and student else spec
