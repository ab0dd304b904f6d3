"""`convert` from the Hub, with the real huggingface_hub against a local server. Its settings are read at import, so
every test runs the command as a process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.storage.files import PROVENANCE
from tests.conftest import Finished
from tests.support.hub_server import COMMIT, NAME, OTHER_COMMIT, Hub, serve
from tests.support.tiny import change_weights, edit_json, make_tiny_qwen2

Convert = Callable[..., Finished]


@pytest.fixture
def hub(tiny_student: Path, tmp_path: Path) -> Iterator[Hub]:
    """The tiny model as torch would have left it on the Hub, among files that nobody should ask for."""
    folder = tmp_path / "repository"
    shutil.copytree(tiny_student, folder)
    change_weights(folder, form="pt")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_tiny.py").write_text("raise SystemExit")
    (folder / "README.md").write_text("# Tiny")
    with serve(folder) as served:
        yield served


@pytest.fixture
def convert(hub: Hub, cli: Callable[..., Finished], tmp_path: Path) -> Convert:
    def run(*arguments: str, name: str = NAME, **environment: str) -> Finished:
        return cli(
            "convert",
            name,
            "--out",
            "out",
            *arguments,
            cwd=tmp_path,
            env={**hub.environment, **environment},
        )

    return run


def record(tmp_path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((tmp_path / "out" / PROVENANCE).read_text())
    return data


def assert_refused(done: Finished, *parts: str) -> None:
    assert done.code == 1
    assert "Traceback" not in done.err
    for part in parts:
        assert part in done.err


def test_a_repository_is_pinned_and_only_needed_files_fetched(hub: Hub, convert: Convert, tmp_path: Path) -> None:
    done = convert()
    assert done.code == 0, done.err
    assert record(tmp_path)["revision"] == COMMIT
    assert COMMIT in done.out
    assert "download:" in done.err
    assert not {"pytorch_model.bin", "modeling_tiny.py", "README.md"} & set(hub.sent)
    assert {"config.json", "tokenizer.json", "generation_config.json", "model.safetensors"} <= set(hub.sent)

    hub.refs["main"] = OTHER_COMMIT  # the branch moves on; the student stays what it was, and nobody is asked
    asked = len(hub.requests)
    again = convert("--json")
    assert json.loads(again.out)["already_there"]
    assert (len(hub.requests), record(tmp_path)["revision"]) == (asked, COMMIT)

    assert convert("--force").code == 0
    assert record(tmp_path)["revision"] == OTHER_COMMIT


def test_a_named_revision_is_taken(hub: Hub, convert: Convert, tmp_path: Path) -> None:
    done = convert("--revision", "v1")
    assert done.code == 0, done.err
    assert record(tmp_path)["revision"] == OTHER_COMMIT
    assert not any("/main" in request for request in hub.requests)


def test_a_repository_in_mlx_format_is_used_where_it_lies(
    hub: Hub, convert: Convert, tiny_student: Path, tmp_path: Path
) -> None:
    shutil.copyfile(tiny_student / "model.safetensors", hub.folder / "model.safetensors")
    done = convert()
    assert done.code == 0, done.err
    assert COMMIT in str((tmp_path / "out" / "model.safetensors").readlink())


@pytest.fixture
def large_hub(hub: Hub) -> Hub:
    """Weights of more than the 10 MiB that huggingface_hub writes at a time, and a connection that breaks."""
    make_tiny_qwen2(hub.folder, hidden=1024, layers=1)
    hub.cut_at, hub.cuts = 11 << 20, 1
    return hub


REST = f"GET /{NAME}/resolve/{COMMIT}/model.safetensors bytes={10 << 20}-"


def test_a_dropped_connection_resumes(large_hub: Hub, convert: Convert) -> None:
    done = convert()
    assert done.code == 0, done.err
    assert REST in large_hub.requests


def test_the_next_run_fetches_only_unfinished_files(large_hub: Hub, convert: Convert, tmp_path: Path) -> None:
    large_hub.down_after_cut = True
    stopped = convert()
    assert_refused(stopped, NAME, "Run the same command again")
    assert not (tmp_path / "out").exists()
    assert REST in large_hub.requests
    large_hub.refuse = None
    large_hub.requests.clear()
    assert convert().code == 0
    fetched = [request for request in large_hub.requests if request.startswith("GET") and "/resolve/" in request]
    assert fetched == [f"GET /{NAME}/resolve/{COMMIT}/model.safetensors"]


def test_the_cache_serves_when_the_hub_does_not(hub: Hub, convert: Convert, tmp_path: Path) -> None:
    assert convert().code == 0
    shutil.rmtree(tmp_path / "out")
    offline = convert(HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.code == 0, offline.err
    assert "Using the cached copy" in offline.err
    assert record(tmp_path)["revision"] == COMMIT


@pytest.mark.parametrize("environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_without_hub_and_cache_one_line_says_so(environment: dict[str, str], convert: Convert) -> None:
    assert_refused(convert(**environment), "the Hub cannot be reached", "Check the connection")


@pytest.mark.parametrize(
    ("refuse", "parts"),
    [
        ((401, ""), ["no such repository, or it is private or gated", "hf auth login"]),
        ((403, "GatedRepo"), ["access is gated", "Accept the terms", "hf auth login"]),
        ((404, "RepoNotFound"), ["there is no such repository on the Hub (404)"]),
        ((500, ""), ["the Hub answered 500", "Run the same command again"]),
    ],
)
def test_a_refusal_of_the_hub_is_one_line(
    refuse: tuple[int, str], parts: list[str], hub: Hub, convert: Convert, tmp_path: Path
) -> None:
    hub.refuse = refuse
    assert_refused(convert(), NAME, *parts)
    assert not (tmp_path / "out").exists()


def test_a_revision_that_is_not_there_is_named(convert: Convert) -> None:
    assert_refused(convert("--revision", "v9"), "there is no revision 'v9'")


def test_an_impossible_name_is_refused(convert: Convert) -> None:
    assert_refused(convert(name="tiny/a--b"), "tiny/a--b", "Check the name")


def test_a_repository_of_pickles_is_refused(hub: Hub, convert: Convert) -> None:
    (hub.folder / "model.safetensors").unlink()
    assert_refused(convert(), "pickles (.bin, .pt), are never loaded")
    assert "pytorch_model.bin" not in hub.sent


def test_a_repository_with_code_is_refused(hub: Hub, convert: Convert, tmp_path: Path) -> None:
    edit_json(hub.folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [f"{NAME}--modeling_tiny.Evil", None]})
    assert_refused(convert(), "auto_map", "never runs such code")
    assert "modeling_tiny.py" not in hub.sent
    assert not (tmp_path / "out").exists()


def test_a_second_run_does_not_load_mlx(hub: Hub, convert: Convert, tmp_path: Path) -> None:
    assert convert().code == 0
    code = (
        "import sys; from pathlib import Path\n"
        "from mlx_distill.convert import ConvertConfig; from mlx_distill.convert.run import run\n"
        f"assert run(ConvertConfig({NAME!r}, Path('out'))).already_there\n"
        "assert not {'mlx.core', 'transformers', 'huggingface_hub'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
