"""Broken files and flags, one a case: each ends with a message that names the place, and no traceback.

The commands run in this process, through the entry point's own function: only messages and exit codes matter here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mlx_distill.cli import main
from tests.support.adapters import make_adapter
from tests.support.rows import make_rows
from tests.support.tiny import make_tiny_qwen2

PROJECT = 'name = "p"\nteacher = "recorded:sample"\nstudent = "m"\n'
COLLECT = "collect --teacher recorded:sample --out o --prompts {}"
TRAIN = "train --model m --data d --adapter new"
COMPARE = "compare --no-teacher --model m --adapter a --data d --out r"
FUSE = "fuse --model m --adapter a --data d --out f"
ROW = '{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}\n'


@dataclass(frozen=True)
class Case:
    """Files that are written or replaced (None removes one), a command line, and what it must say."""

    command: str
    says: tuple[str, ...]
    files: Mapping[str, str | bytes | None] = field(default_factory=dict)
    code: int = 1


CASES = {
    # the project file
    "no project and no flags": Case("train", ("--model", "must be given", "mlx-distill init"), code=2),
    "run outside a project": Case("run", ("distill.toml", "mlx-distill init")),
    "toml with a syntax fault": Case("run", ("not valid TOML", "line 2"), {"distill.toml": 'name = "p"\nseed = = 1\n'}),
    "toml without a name": Case("run", ("name is missing",), {"distill.toml": "seed = 1\n"}),
    "toml with a bad name": Case("run", ("'../up'", "letters, digits"), {"distill.toml": 'name = "../up"\n'}),
    "toml with an unknown section": Case("run", ("[trian]",), {"distill.toml": PROJECT + "[trian]\nepochs = 1\n"}),
    "toml with an unknown setting": Case(
        "run", ("'epoch'", "did you mean 'epochs'"), {"distill.toml": PROJECT + "[train]\nepoch = 1\n"}
    ),
    "toml with text for a number": Case(
        "run", ("rank", "'eight' is not a whole number"), {"distill.toml": PROJECT + '[train]\nrank = "eight"\n'}
    ),
    "toml with a boolean for a number": Case(
        "run", ("seed", "True is not a whole number"), {"distill.toml": 'name = "p"\nseed = true\n'}
    ),
    "toml with a value out of range": Case(
        "run", ("epochs is 0",), {"distill.toml": PROJECT + "[train]\nepochs = 0\n"}
    ),
    "toml that is not UTF-8": Case("run", ("byte 8 is not UTF-8",), {"distill.toml": b'name = "\xff"\n'}),
    "an override without a value": Case("run --set train.epochs", ("KEY=VALUE",), {"distill.toml": PROJECT}),
    # init
    "init into a folder with files": Case("init m", ("m exists already",)),
    "init with a name that is no name": Case("init .hidden", (".hidden", "begin with a letter")),
    # collect
    "prompts that are not there": Case(COLLECT.format("none.jsonl"), ("none.jsonl", "no such file")),
    "prompts that are a folder": Case(COLLECT.format("d"), ("d", "folder")),
    "prompts with a broken line": Case(
        COLLECT.format("p.jsonl"), ("p.jsonl:2: not valid JSON",), {"p.jsonl": '{"prompt": "a"}\n{"prompt": \n'}
    ),
    "prompts with several faults, all named": Case(
        COLLECT.format("p.jsonl"),
        ("p.jsonl:1", '"prompt" is missing', "p.jsonl:2", "empty", "p.jsonl:3", "dev"),
        {"p.jsonl": '{"text": "a"}\n{"prompt": " "}\n{"prompt": "b", "split": "dev"}\n'},
    ),
    "prompts with one id twice": Case(
        COLLECT.format("p.jsonl"), ("'x'",), {"p.jsonl": '{"id": "x", "prompt": "a"}\n{"id": "x", "prompt": "b"}\n'}
    ),
    "an empty prompt file": Case(COLLECT.format("p.jsonl"), ("p.jsonl",), {"p.jsonl": "\n\n"}),
    "an unknown teacher": Case(
        "collect --teacher oracle:delphi --out o --prompts p.txt", ("oracle", "anthropic"), {"p.txt": "Hello\n"}
    ),
    "a teacher without a model": Case(
        "collect --teacher anthropic: --out o --prompts p.txt", ("anthropic:",), {"p.txt": "Hello\n"}
    ),
    "no API key": Case(
        "collect --teacher anthropic:claude-sonnet-4-6 --out o --prompts p.txt",
        ("ANTHROPIC_API_KEY",),
        {"p.txt": "Hello\n"},
    ),
    "a recording that is not there": Case(
        "collect --teacher recorded:none.jsonl --out o --prompts p.txt", ("none.jsonl",), {"p.txt": "Hello\n"}
    ),
    "a concurrency of nothing": Case(COLLECT.format("p.txt") + " --concurrency 0", ("concurrency",), {"p.txt": "Hi\n"}),
    # prepare
    "prepare before collect": Case("prepare --data none --model m", ("teacher_data.jsonl", "mlx-distill collect")),
    "prepare with a broken journal": Case(
        "prepare --data j --model m", ("teacher_data.jsonl:1",), {"j/teacher_data.jsonl": "not json\n"}
    ),
    "prepare without a student": Case(
        "prepare --data j --model none",
        ("none", "convert"),
        {"j/teacher_data.jsonl": ROW.replace('"messages"', '"answer": "A", "messages"')},
    ),
    "shares that leave nothing to train on": Case(
        "prepare --data d --model m --valid-share 0.6 --test-share 0.6", ("nothing is left for train",)
    ),
    # convert
    "a source that is nothing": Case("convert nothing/here/at/all --out c", ("nothing/here/at/all",)),
    "a folder that is no model": Case("convert d --out c", ("d: no model*.safetensors",)),
    "a GGUF file that is cut short": Case("convert x.gguf --out c", ("x.gguf",), {"x.gguf": b"GGUF\x03\0\0\0"}),
    "a file that is no model": Case("convert x.bin --out c", ("x.bin",), {"x.bin": b"hello"}),
    "bits that do not exist": Case("convert m --out c --q-bits 5", ("q_bits",)),
    # train
    "a model folder that is not there": Case(TRAIN.replace("m ", "none ", 1), ("none", "convert")),
    "a model with a broken config": Case(TRAIN, ("config.json", "not valid JSON"), {"m/config.json": "{"}),
    "a model without weights": Case(TRAIN, ("no weights",), {"m/model.safetensors": None}),
    "a model with damaged weights": Case(TRAIN, ("m",), {"m/model.safetensors": b"\x10\0\0\0\0\0\0\0damaged"}),
    "a model of an unknown architecture": Case(TRAIN, ("mystery",), {"m/config.json": '{"model_type": "mystery"}'}),
    "a model that asks for code of its own": Case(
        TRAIN, ("code of its own",), {"m/config.json": '{"model_type": "qwen2", "model_file": "evil.py"}'}
    ),
    "rows that are not there": Case(TRAIN, ("train.jsonl", "mlx-distill prepare"), {"d/train.jsonl": None}),
    "a row without an answer": Case(
        TRAIN,
        ("train.jsonl:1", "no assistant turn"),
        {"d/train.jsonl": '{"messages": [{"role": "user", "content": "Q"}]}\n'},
    ),
    "a row with an unknown role": Case(
        TRAIN, ("train.jsonl:1", "'robot'"), {"d/train.jsonl": ROW.replace("user", "robot")}
    ),
    "a row that is a list": Case(TRAIN, ("train.jsonl:1", "JSON object"), {"d/train.jsonl": "[1, 2]\n"}),
    "no validation rows": Case(TRAIN, ("valid.jsonl holds no rows",), {"d/valid.jsonl": ""}),
    "rows longer than allowed": Case(TRAIN + " --max-length 20", ("tokens long", "max_length is 20")),
    "a learning rate of zero": Case(TRAIN + " --learning-rate 0", ("learning_rate is 0",)),
    "a rank that is no number": Case(TRAIN + " --rank many", ("--rank", "many"), code=2),
    "a schedule that does not exist": Case(TRAIN + " --schedule steps", ("steps",), code=2),
    "layers that do not exist": Case(TRAIN + " --targets attention", ("attention", "self_attn.q_proj")),
    "resume without a checkpoint": Case(TRAIN + " --resume", ("no checkpoint",)),
    "an adapter folder in use": Case(TRAIN.replace("new", "a"), ("a exists already", "--force")),
    "an adapter path that is a file": Case(TRAIN.replace("new", "x"), ("x",), {"x": "hello"}),
    # compare, fuse, chat
    "an adapter that is not there": Case(COMPARE.replace(" a ", " none "), ("none", "mlx-distill train")),
    "an adapter of another model": Case(COMPARE.replace(" m ", " other "), ("does not fit",)),
    "an adapter with a broken config": Case(COMPARE, ("adapter_config.json",), {"a/adapter_config.json": "{}"}),
    "an adapter without weights": Case(FUSE, ("adapters.safetensors",), {"a/adapters.safetensors": None}),
    "no test rows": Case(COMPARE, ("test.jsonl",), {"d/test.jsonl": ""}),
    "broken test prompts": Case(COMPARE + " --test-prompts t.jsonl", ("t.jsonl:1",), {"t.jsonl": '{"prompt": 3}\n'}),
    "fuse onto something that exists": Case(FUSE.replace(" f", " d", 1).replace("--out f", "--out m"), ("m",)),
    "fuse without test rows": Case(FUSE, ("test.jsonl", "mlx-distill prepare"), {"d/test.jsonl": None}),
    "chat with a model that is not there": Case("chat --model none", ("none",)),
    # the command line itself
    "an unknown command": Case("distil", ("No such command", "distil"), code=2),
    "an unknown option": Case("train --epoch 3", ("No such option", "--epochs"), code=2),
    "a folder to work in that is not there": Case("-C none run", ("none", "does not exist"), code=2),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, another model, rows and an adapter that are all in order."""
    root = tmp_path_factory.mktemp("good")
    make_tiny_qwen2(root / "m")
    make_tiny_qwen2(root / "other", hidden=96, layers=1)
    make_rows(root / "d")
    make_adapter(root / "m", root / "a")
    return root


@pytest.mark.parametrize("name", CASES)
def test_it_says_what_is_wrong_and_leaves_everything_as_it_was(
    name: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    for item in good.iterdir():
        _copy(item, tmp_path / item.name)
    for path, content in case.files.items():
        file = tmp_path / path
        file.unlink(missing_ok=True)
        if content is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n")))
    before = _contents(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(case.command.split())
    printed = capsys.readouterr()
    assert ended.value.code == case.code, printed.err
    for words in case.says:
        assert words in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert _contents(tmp_path) == before, "nothing is lost or half-written"


def test_the_table_is_long_enough_and_its_files_are_in_order(good: Path) -> None:
    assert len(CASES) >= 40
    assert json.loads((good / "m/config.json").read_text())["model_type"] == "qwen2"


def _copy(source: Path, target: Path) -> None:
    """Copy a folder; its files are replaced by the cases, never written into, so links will do."""
    target.mkdir()
    for file in source.rglob("*"):
        if file.is_file():
            (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(source)).hardlink_to(file)


def _contents(root: Path) -> dict[str, bytes]:
    """Every file by name, but the caches that libraries keep in the home folder."""
    files = (file for file in root.rglob("*") if file.is_file() and "home" not in file.relative_to(root).parts[:1])
    return {str(file.relative_to(root)): file.read_bytes() for file in files}
