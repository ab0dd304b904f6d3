"""`export ollama`: the Modelfile, with and without an installed Ollama."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_distill.errors import MachineError
from mlx_distill.events import Event, Warning
from mlx_distill.export import ollama
from mlx_distill.export.config import OllamaConfig
from mlx_distill.export.ollama import run
from mlx_distill.models.load import load_tokenizer
from tests.support.tiny import CHAT_TEMPLATE, edit_json, make_tiny_qwen2


def fake_ollama(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program called `ollama` first on the PATH."""
    folder.mkdir()
    program = folder / "ollama"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_modelfile_has_template_stops_and_system_message(
    tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = run(OllamaConfig(tiny_student, tmp_path / "out", "mine", system='Be "brief".\nAlways.'))
    assert not result.created and result.command == f"ollama create mine -f {tmp_path}/out/Modelfile"
    assert result.gguf.read_bytes()[:4] == b"GGUF"
    assert result.modelfile.read_text() == (
        f"FROM ./{tiny_student.name}.gguf\n"
        'TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}\n'
        "{{ .Content }}<|im_end|>\n"
        "{{ end }}<|im_start|>assistant\n"
        '"""\n'
        'PARAMETER stop "<|endoftext|>"\n'
        'PARAMETER stop "<|im_end|>"\n'
        'SYSTEM """Be "brief".\nAlways."""\n'
    )


def test_another_chat_template_is_left_to_the_gguf_file(tmp_path: Path) -> None:
    model = make_tiny_qwen2(tmp_path / "other")
    edit_json(model / "tokenizer_config.json", chat_template=CHAT_TEMPLATE.replace("assistant\\n", "model\\n"))
    told: list[Event] = []
    text = ollama.modelfile(load_tokenizer(model), "other.gguf", "", told.append)
    assert "TEMPLATE" not in text and "SYSTEM" not in text and "PARAMETER stop" in text
    assert isinstance(told[0], Warning)


def test_where_ollama_is_installed_the_model_is_created(
    tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ollama(tmp_path / "bin", monkeypatch, f'echo "$@" > {tmp_path}/asked; test -f "$4"')
    result = run(OllamaConfig(tiny_student, tmp_path / "out", "mine"))
    assert result.created
    assert (tmp_path / "asked").read_text() == f"create mine -f {tmp_path}/out/Modelfile\n"


def test_a_failing_ollama_is_quoted_and_the_folder_stays(
    tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ollama(tmp_path / "bin", monkeypatch, 'echo "Error: could not connect to a running server" >&2; exit 1')
    with pytest.raises(MachineError, match="could not connect") as caught:
        run(OllamaConfig(tiny_student, tmp_path / "out", "mine"))
    assert "ollama create mine" in caught.value.next_step
    assert (tmp_path / "out" / "Modelfile").exists()


@pytest.mark.parametrize(
    "change", [{"name": "Mine"}, {"name": "a b"}, {"system": 'x """ y'}, {"system": 'x"'}, {"kind": "Q2"}]
)
def test_settings_that_ollama_cannot_hold_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        OllamaConfig(**{"model": Path("m"), "out": Path("o"), "name": "mine", **change})  # type: ignore[arg-type]
