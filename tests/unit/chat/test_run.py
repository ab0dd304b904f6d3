"""The stage `chat` without a terminal: one piped prompt, one answer."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from mlx_distill.chat import ChatConfig
from mlx_distill.chat.run import run
from mlx_distill.errors import InputError
from tests.support.adapters import make_adapter


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"What is a queue?\n"))
    monkeypatch.setattr("sys.stdin", stdin)


@pytest.mark.usefixtures("pipe")
def test_a_pipe_gets_only_the_answer(tiny_student: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(ChatConfig(tiny_student, max_tokens=5))
    out, err = capfd.readouterr()
    assert out.endswith("\n") and len(out) > 1
    assert err == "(cut off after 5 tokens; --max-tokens raises the limit)\n"


@pytest.mark.usefixtures("pipe")
def test_a_pipe_gets_both_answers_with_ab(
    tiny_student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tiny_student, tmp_path / "adapter")
    run(ChatConfig(tiny_student, adapter, max_tokens=5), ab=True)
    out, err = capfd.readouterr()
    assert out.startswith("base:\n") and "\n\ndistilled:\n" in out
    assert err.count("cut off after 5 tokens") == 2


def test_ab_without_an_adapter_is_refused(tiny_student: Path) -> None:
    with pytest.raises(InputError, match="--ab"):
        run(ChatConfig(tiny_student), ab=True)


@pytest.mark.parametrize("text", [b"  \n", b"\xff"])
def test_a_pipe_without_a_prompt_is_refused(tiny_student: Path, monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    with pytest.raises(InputError, match="Standard input"):
        run(ChatConfig(tiny_student))
