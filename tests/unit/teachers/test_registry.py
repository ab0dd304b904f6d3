"""Teachers by name."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from mlx_distill.collect.config import CollectConfig
from mlx_distill.collect.run import run
from mlx_distill.errors import InputError
from mlx_distill.teachers import PROVIDERS, Provider, open_teacher
from mlx_distill.teachers.registry import check_key, teacher_usage
from tests.support.teachers import Parrot, shout


@pytest.mark.parametrize("spec", ["", "claude-sonnet-4-6", "opneai:gpt", "anthropic:", "recorded: "])
def test_unknown_teacher_is_refused_with_examples(spec: str) -> None:
    with pytest.raises(InputError) as raised:
        open_teacher(spec)
    assert repr(spec) in raised.value.message
    assert "anthropic:claude-sonnet-4-6" in raised.value.next_step


@pytest.mark.parametrize("spec", ["anthropic:claude-sonnet-4-6", "recorded:sample", "recorded:C:/x.jsonl"])
def test_teacher_keeps_its_name(spec: str) -> None:
    assert open_teacher(spec).name == spec


def test_new_teacher_is_a_file_and_a_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Toy(Parrot):
        def __init__(self, model: str) -> None:
            super().__init__(shout)
            self.name = f"toy:{model}"

    module = ModuleType("toy_teacher")
    module.Toy = Toy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_teacher", module)
    provider = Provider(usage="toy:MODEL", factory="toy_teacher:Toy", key_names=("TOY_KEY",), advice="Buy a key.")
    monkeypatch.setitem(PROVIDERS, "toy", provider)
    (tmp_path / "p.txt").write_text("a\nb\n")
    result = run(CollectConfig(out=tmp_path, teacher="toy:one", prompts=tmp_path / "p.txt"))
    assert (result.n_answered, result.teacher) == (2, "toy:one")
    assert "toy:MODEL" in teacher_usage()
    assert check_key("toy:one", {}).advice == "Buy a key."
    assert check_key("toy:one", {"TOY_KEY": "secret"}).text == "TOY_KEY is set"


@pytest.mark.parametrize(
    ("spec", "environment", "status"),
    [
        ("anthropic:m", {}, "warning"),
        ("anthropic:m", {"ANTHROPIC_AUTH_TOKEN": "t"}, "ok"),
        ("openai:m", {}, "warning"),
        ("openai:m", {"OPENAI_BASE_URL": "http://localhost:1"}, "ok"),
        ("openai:m@http://localhost:1/v1", {}, "ok"),
        ("recorded:sample", {}, "ok"),
    ],
)
def test_doctor_checks_the_key_of_the_provider(spec: str, environment: dict[str, str], status: str) -> None:
    assert check_key(spec, environment).status == status
