"""`push` with the real huggingface_hub: what it refuses before it asks anybody, and a local stand-in for the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.errors import DistillError, InputError, Interrupted, MachineError, MissingError
from mlx_distill.export.hub import Listing, PushConfig, run
from tests.support.local_http import serving
from tests.support.tiny import make_tiny_qwen2


class Hub:
    """One account and its repositories, as far as an upload of small files needs them."""

    def __init__(self) -> None:
        self.repositories: dict[str, bool] = {}
        """Name to whether it is private."""
        self.committed: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.token_works = True
        self.url = ""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()

    class Handler(_Handler):
        hub = state

    with serving(Handler) as state.url:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", state.url)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield state


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", "0"))))

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, body: bytes) -> None:
        hub = self.hub
        hub.asked.append(f"{self.command} {self.path}")
        if self.headers.get("Authorization") != "Bearer hf_test" or not hub.token_works:
            self._json({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            exists = name in hub.repositories
            hub.repositories.setdefault(name, wanted.get("visibility") == "private" or wanted.get("private") is True)
            self._json({"url": f"{hub.url}/{name}", "name": name}, 409 if exists else 200)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/preupload/main|/commit/main|)(\?.*)?", self.path):
            self._repository(found[1], found[2], body)
        elif self.path.endswith("README.md") or "yaml" in self.path:
            self._json({"errors": [], "warnings": []})
        else:
            self._json({"error": f"unknown {self.path}"}, 404)

    def _repository(self, name: str, what: str, body: bytes) -> None:
        if what == "/preupload/main":
            files = json.loads(body)["files"]
            answers = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self._json({"files": answers})
        elif what == "/commit/main":
            import base64

            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.hub.committed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._json({"commitUrl": f"{self.hub.url}/{name}/commit/abc", "commitOid": "abc", "pullRequestUrl": None})
        else:
            private = self.hub.repositories[name]
            files = [{"rfilename": file} for file in (".gitattributes", *self.hub.committed)]
            self._json({"id": name, "modelId": name, "private": private, "siblings": files, "tags": [], "sha": "abc"})

    def _json(self, data: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def never(_listing: Listing) -> bool:
    pytest.fail("asked although it must not come to that")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = make_tiny_qwen2(tmp_path / "fused")
    (folder / ".hidden").write_text("mine")
    return folder


def test_the_listed_files_and_no_others_arrive_in_a_private_repository(hub: Hub, model: Path) -> None:
    seen: list[Listing] = []

    def yes(listing: Listing) -> bool:
        seen.append(listing)
        assert not hub.asked, "nothing is asked of the Hub before the user has agreed"
        return True

    result = run(PushConfig(model, "me/student"), confirm=yes)
    assert hub.repositories == {"me/student": True}
    assert set(hub.committed) == {name for name, _ in seen[0].files}
    assert ".hidden" not in hub.committed
    assert hub.committed["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert result.n_files == len(hub.committed) and result.url.endswith("/me/student")


def test_a_public_repository_of_that_name_is_not_written_to(hub: Hub, model: Path) -> None:
    hub.repositories["me/student"] = False
    with pytest.raises(InputError, match="everybody can see it"):
        run(PushConfig(model, "me/student"), confirm=lambda _: True)
    assert not hub.committed
    run(PushConfig(model, "me/student", private=False), confirm=lambda _: True)
    assert "model.safetensors" in hub.committed


def test_files_that_are_there_are_replaced_only_by_force(hub: Hub, model: Path) -> None:
    run(PushConfig(model, "me/student"), confirm=lambda _: True)
    (model / "README.md").write_text("A new card.\n")
    with pytest.raises(InputError, match=r"me/student holds config.json, .*model.safetensors.* already") as caught:
        run(PushConfig(model, "me/student"), confirm=lambda _: True)
    assert "--force" in caught.value.next_step and "README.md" not in hub.committed
    run(PushConfig(model, "me/student", force=True), confirm=lambda _: True)
    assert hub.committed["README.md"] == b"A new card.\n"


def test_the_command_ends_with_what_to_type_next(hub: Hub, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mlx_distill.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["push", "student", "--model", str(model), "--yes"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1].split("  ")[-1] == "mlx_lm.chat --model me/student"


def test_a_token_without_access_and_a_no_upload_nothing(hub: Hub, model: Path) -> None:
    with pytest.raises(Interrupted, match="Nothing was uploaded"):
        run(PushConfig(model, "me/student"), confirm=lambda _: False)
    assert not hub.asked
    hub.token_works = False
    with pytest.raises(InputError, match=r"refuses this token \(401\)"):
        run(PushConfig(model, "me/student"), confirm=lambda _: True)
    assert not hub.committed


def test_without_a_token_it_says_where_to_get_one(model: Path) -> None:
    with pytest.raises(MissingError, match="no token") as caught:
        run(PushConfig(model, "me/student"), confirm=never)
    assert "hf auth login" in caught.value.next_step


def test_where_the_hub_cannot_be_reached_it_says_so(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MachineError, match="cannot be reached"):
        run(PushConfig(model, "me/student"), confirm=lambda _: True)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("gone", "there is no model folder"),
        ("adapter", "is an adapter"),
        ("no weights", "no config.json with safetensors weights"),
        ("no config", "no config.json with safetensors weights"),
    ],
)
def test_what_is_no_fused_model_is_refused(model: Path, spoil: str, says: str) -> None:
    folder = model
    if spoil == "gone":
        folder = model / "nowhere"
    elif spoil == "adapter":
        (model / "adapter_config.json").write_text("{}")
    elif spoil == "no weights":
        (model / "model.safetensors").unlink()
    else:
        (model / "config.json").unlink()
    with pytest.raises(DistillError, match=says):
        run(PushConfig(folder, "me/student"), confirm=never)


@pytest.mark.parametrize("name", ["a/b/c", "me/", "-x", "me/a..b"])
def test_names_that_no_repository_can_have_are_refused(model: Path, name: str) -> None:
    with pytest.raises(InputError, match="not a name for a repository"):
        run(PushConfig(model, name), confirm=never)


def test_in_a_script_it_lists_and_asks_for_yes(
    hub: Hub, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_distill.cli import main

    with Path("/dev/null").open() as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        with pytest.raises(SystemExit) as ended:
            main(["push", "me/student", "--model", str(model)])
    seen = capsys.readouterr().err
    assert ended.value.code == 1
    assert "me/student (private: only you can see it)" in seen and "model.safetensors" in seen and "--yes" in seen
    assert not hub.asked
