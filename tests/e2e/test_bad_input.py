"""Broken files and options, one per case: the message names the place, there is no traceback, and no file changes.

The commands run in this process, through the function of the entry point.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from mlx_distill.cli import main
from tests.support.adapters import make_adapter
from tests.support.rows import make_rows
from tests.support.tiny import make_tiny_qwen2

PROJECT = 'name = "p"\nteacher = "recorded:sample"\nstudent = "qwen"\n'
COLLECT = "collect --teacher recorded:sample --out o --prompts"
TRAIN = "train --model qwen --data d --adapter new"
COMPARE = "compare --no-teacher --model qwen --adapter a --data d --out r"
FUSE = "fuse --model qwen --adapter a --data d --out f"
ROW = '{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}\n'

Files = Mapping[str, str | bytes | None]
Case = tuple[str, Files, list[str]]
"""A command, the files that the case writes (None: deletes), and words that the message must contain."""


def project(text: str) -> Files:
    return {"distill.toml": PROJECT + text}


BAD_INPUT: dict[str, Case] = {
    # the project file
    "run outside a project": ("run", {}, ["distill.toml", "mlx-distill init"]),
    "toml with a syntax error": ("run", project("seed = = 1\n"), ["TOML", "line 4"]),
    "toml without a name": ("run", {"distill.toml": "seed = 1\n"}, ["name"]),
    "toml with a bad name": ("run", {"distill.toml": 'name = "../up"\n'}, ["../up"]),
    "toml with an unknown section": ("run", project("[trian]\nepochs = 1\n"), ["trian"]),
    "toml with an unknown setting": ("run", project("[train]\nepoch = 1\n"), ["[train]", "'epoch'", "'epochs'"]),
    "toml with text for a number": ("run", project('[train]\nrank = "eight"\n'), ["[train]", "rank", "eight"]),
    "toml with a boolean for a number": ("run", project("seed = true\n"), ["seed"]),
    "toml with a value out of range": ("run", project("[train]\nepochs = 0\n"), ["[train]", "epochs"]),
    "toml that is not UTF-8": ("run", {"distill.toml": b'name = "\xff"\n'}, ["byte 8", "UTF-8"]),
    "an override without a value": ("run --set train.epochs", project(""), ["train.epochs", "KEY=VALUE"]),
    # init
    "init in a folder with files": ("init qwen", {}, ["qwen", "exists"]),
    "init with a name that starts with a dot": ("init .hidden", {}, [".hidden", "letter"]),
    # collect
    "missing prompts": (f"{COLLECT} none.jsonl", {}, ["none.jsonl"]),
    "prompts that are a folder": (f"{COLLECT} d", {}, ["d", "folder"]),
    "prompts with a broken line": (
        f"{COLLECT} p.jsonl",
        {"p.jsonl": '{"prompt": "a"}\n{"prompt": \n'},
        ["p.jsonl:2", "JSON"],
    ),
    "prompts with several errors, all named": (
        f"{COLLECT} p.jsonl",
        {"p.jsonl": '{"text": "a"}\n{"prompt": " "}\n{"prompt": "b", "split": "dev"}\n'},
        ["p.jsonl:1", "prompt", "p.jsonl:2", "p.jsonl:3", "dev"],
    ),
    "prompts with the same id twice": (
        f"{COLLECT} p.jsonl",
        {"p.jsonl": '{"id": "x", "prompt": "a"}\n{"id": "x", "prompt": "b"}\n'},
        ["'x'"],
    ),
    "an empty prompt file": (f"{COLLECT} p.jsonl", {"p.jsonl": "\n\n"}, ["p.jsonl"]),
    "an unknown teacher": ("collect --teacher oracle:delphi --out o --prompts p.txt", {}, ["oracle", "anthropic"]),
    "a teacher without a model": ("collect --teacher anthropic: --out o --prompts p.txt", {}, ["anthropic:"]),
    "no API key": ("collect --teacher anthropic:claude-sonnet-4-6 --out o --prompts p.txt", {}, ["ANTHROPIC_API_KEY"]),
    "a missing recording": ("collect --teacher recorded:none.jsonl --out o --prompts p.txt", {}, ["none.jsonl"]),
    "a concurrency of 0": (f"{COLLECT} p.txt --concurrency 0", {}, ["concurrency"]),
    # prepare
    "prepare before collect": ("prepare --data none --model qwen", {}, ["teacher_data.jsonl", "mlx-distill collect"]),
    "prepare with a broken journal": (
        "prepare --data j --model qwen",
        {"j/teacher_data.jsonl": "not json\n"},
        ["teacher_data.jsonl:1"],
    ),
    "prepare without a student": (
        "prepare --data j --model none",
        {"j/teacher_data.jsonl": ROW.replace('"messages"', '"answer": "A", "messages"')},
        ["none", "convert"],
    ),
    "fractions without training rows": (
        "prepare --data d --model qwen --valid-fraction 0.6 --test-fraction 0.6",
        {},
        ["train"],
    ),
    # convert
    "a source that does not exist": ("convert nothing/here/at/all --out c", {}, ["nothing/here/at/all"]),
    "a folder without a model": ("convert d --out c", {}, ["d", "safetensors"]),
    "a truncated GGUF file": ("convert x.gguf --out c", {"x.gguf": b"GGUF\x03\0\0\0"}, ["x.gguf"]),
    "a file that is not a model": ("convert x.bin --out c", {"x.bin": b"hello"}, ["x.bin"]),
    "an unsupported number of bits": ("convert qwen --out c --q-bits 5", {}, ["q_bits"]),
    # train
    "a missing model folder": (TRAIN.replace("qwen", "none"), {}, ["none", "convert"]),
    "a model with a broken config": (TRAIN, {"qwen/config.json": "{"}, ["config.json", "JSON"]),
    "a model without weights": (TRAIN, {"qwen/model.safetensors": None}, ["weights"]),
    "a model with damaged weights": (TRAIN, {"qwen/model.safetensors": b"\x10\0\0\0\0\0\0\0damaged"}, ["qwen"]),
    "a model of an unknown architecture": (TRAIN, {"qwen/config.json": '{"model_type": "mystery"}'}, ["mystery"]),
    "a model that runs its own code": (
        TRAIN,
        {"qwen/config.json": '{"model_type": "qwen2", "model_file": "evil.py"}'},
        ["qwen", "code"],
    ),
    "missing rows": (TRAIN, {"d/train.jsonl": None}, ["train.jsonl", "mlx-distill prepare"]),
    "a row without an answer": (
        TRAIN,
        {"d/train.jsonl": '{"messages": [{"role": "user", "content": "Q"}]}\n'},
        ["train.jsonl:1", "assistant"],
    ),
    "a row with an unknown role": (TRAIN, {"d/train.jsonl": ROW.replace("user", "robot")}, ["train.jsonl:1", "robot"]),
    "a row that is a list": (TRAIN, {"d/train.jsonl": "[1, 2]\n"}, ["train.jsonl:1", "object"]),
    "no validation rows": (TRAIN, {"d/valid.jsonl": ""}, ["valid.jsonl"]),
    "rows that are too long": (f"{TRAIN} --max-length 20", {}, ["tokens", "max_length", "20"]),
    "a learning rate of 0": (f"{TRAIN} --learning-rate 0", {}, ["learning_rate"]),
    "layers that do not exist": (f"{TRAIN} --targets attention", {}, ["attention", "self_attn.q_proj"]),
    "resume without a checkpoint": (f"{TRAIN} --resume", {}, ["checkpoint"]),
    "an adapter folder in use": (TRAIN.replace("new", "a"), {}, ["a already exists", "--force"]),
    "an adapter path that is a file": (TRAIN.replace("new", "taken"), {"taken": "hello"}, ["taken"]),
    # compare, fuse, chat
    "a missing adapter": (COMPARE.replace(" a ", " none "), {}, ["none", "mlx-distill train"]),
    "an adapter of another model": (COMPARE.replace("qwen", "other"), {}, ["fit"]),
    "an adapter with a broken config": (COMPARE, {"a/adapter_config.json": "{}"}, ["adapter_config.json"]),
    "an adapter without weights": (FUSE, {"a/adapters.safetensors": None}, ["adapters.safetensors"]),
    "no test rows": (COMPARE, {"d/test.jsonl": ""}, ["test.jsonl"]),
    "broken test prompts": (f"{COMPARE} --test-prompts t.jsonl", {"t.jsonl": '{"prompt": 3}\n'}, ["t.jsonl:1"]),
    "fuse into a folder in use": (FUSE.replace("--out f", "--out qwen"), {}, ["qwen"]),
    "fuse without test rows": (FUSE, {"d/test.jsonl": None}, ["test.jsonl", "mlx-distill prepare"]),
    "chat with a missing model": ("chat --model none", {}, ["none"]),
}
BAD_USAGE: dict[str, Case] = {
    "no project and no options": ("train", {}, ["--model", "mlx-distill init"]),
    "a rank that is not a number": (f"{TRAIN} --rank many", {}, ["--rank", "many"]),
    "an unknown schedule": (f"{TRAIN} --schedule steps", {}, ["steps"]),
    "an unknown command": ("distil", {}, ["No such command", "distil"]),
    "an unknown option": ("train --epoch 3", {}, ["No such option", "--epochs"]),
    "a missing folder to work in": ("-C none run", {}, ["none"]),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, another model, rows, prompts and an adapter without errors."""
    root = tmp_path_factory.mktemp("good")
    make_tiny_qwen2(root / "qwen")
    make_tiny_qwen2(root / "other", hidden=96, layers=1)
    make_rows(root / "d")
    make_adapter(root / "qwen", root / "a")
    (root / "p.txt").write_text("Hello\n")
    return root


@pytest.mark.parametrize(
    ("case", "exit_code"),
    [
        pytest.param(case, code, id=name)
        for code, cases in ((1, BAD_INPUT), (2, BAD_USAGE))
        for name, case in cases.items()
    ],
)
def test_bad_input_is_explained_and_changes_nothing(
    case: Case,
    exit_code: int,
    good: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, files, says = case
    folder = tmp_path / "work"
    shutil.copytree(good, folder)
    for path, content in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content.encode() if isinstance(content, str) else content or b"")
        if content is None:
            (folder / path).unlink()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n")))
    before = contents(folder)
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    printed = capsys.readouterr()
    assert ended.value.code == exit_code, printed.err
    assert [words for words in says if words not in printed.err] == [], printed.err
    assert "Traceback" not in printed.err and printed.out == ""
    assert contents(folder) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
