"""`push` with the real huggingface_hub against a local stand-in for the Hub."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.cli import main
from mlx_distill.errors import DistillError, InputError, MachineError, MissingError
from mlx_distill.export.config import PushConfig
from mlx_distill.export.hub import files_to_upload, run
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


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = make_tiny_qwen2(tmp_path / "fused")
    (folder / ".hidden").write_text("mine")
    return folder


def test_the_listed_files_arrive_in_a_private_repository(hub: Hub, model: Path) -> None:
    files = files_to_upload(PushConfig(model, "me/student"))
    assert not hub.asked, "listing sends no request"
    result = run(PushConfig(model, "me/student"))
    assert hub.repositories == {"me/student": True}
    assert hub.committed.keys() == files.keys()
    assert ".hidden" not in hub.committed
    assert hub.committed["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert result.n_files == len(hub.committed) and result.url.endswith("/me/student")


def test_a_public_repository_of_that_name_is_not_written_to(hub: Hub, model: Path) -> None:
    hub.repositories["me/student"] = False
    with pytest.raises(InputError, match="everybody can see it"):
        run(PushConfig(model, "me/student"))
    assert not hub.committed
    run(PushConfig(model, "me/student", private=False))
    assert "model.safetensors" in hub.committed


def test_files_that_are_there_are_replaced_only_by_force(hub: Hub, model: Path) -> None:
    run(PushConfig(model, "me/student"))
    (model / "README.md").write_text("A new card.\n")
    with pytest.raises(InputError, match=r"me/student holds config.json, .*model.safetensors.* already") as caught:
        run(PushConfig(model, "me/student"))
    assert "--force" in caught.value.next_step and "README.md" not in hub.committed
    run(PushConfig(model, "me/student", force=True))
    assert hub.committed["README.md"] == b"A new card.\n"


def test_the_command_ends_with_what_to_type_next(hub: Hub, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["push", "student", "--model", str(model), "--yes"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1].split("  ")[-1] == "mlx_lm.chat --model me/student"


def test_a_token_without_access_uploads_nothing(hub: Hub, model: Path) -> None:
    hub.token_works = False
    with pytest.raises(InputError, match=r"refuses this token \(401\)"):
        run(PushConfig(model, "me/student"))
    assert not hub.committed


@pytest.mark.parametrize(("terminal", "code", "says"), [(False, 1, "--yes"), (True, 130, "Nothing was uploaded")])
def test_without_a_yes_nothing_is_uploaded(
    terminal: bool,
    code: int,
    says: str,
    hub: Hub,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = io.StringIO("n\n")
    answer.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", answer)
    with pytest.raises(SystemExit) as ended:
        main(["push", "me/student", "--model", str(model)])
    seen = capsys.readouterr().err
    assert ended.value.code == code
    assert "me/student (private)" in seen and "model.safetensors" in seen and says in seen
    assert not hub.asked


def test_file_names_cannot_command_the_terminal(model: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "\x1b]0;title\x07notes\u202e.txt").touch()
    with pytest.raises(SystemExit):
        main(["push", "me/student", "--model", str(model)])
    shown = capsys.readouterr().err
    assert "notes.txt" in shown and shown.replace("\n", "").isprintable()
    assert hub.committed == {}


def test_without_a_token_it_says_where_to_get_one(model: Path) -> None:
    with pytest.raises(MissingError, match="no token") as caught:
        run(PushConfig(model, "me/student"))
    assert "hf auth login" in caught.value.next_step


def test_an_unreachable_hub_is_reported(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MachineError, match="cannot be reached"):
        run(PushConfig(model, "me/student"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("gone", "there is no model folder"),
        ("adapter", "is an adapter"),
        ("no weights", "config.json or safetensors weights are missing"),
        ("no config", "config.json or safetensors weights are missing"),
    ],
)
def test_what_is_not_a_fused_model_is_refused(model: Path, spoil: str, says: str) -> None:
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
        run(PushConfig(folder, "me/student"))


@pytest.mark.parametrize("name", ["a/b/c", "me/", "-x", "me/a..b"])
def test_names_that_no_repository_can_have_are_refused(model: Path, name: str) -> None:
    with pytest.raises(InputError, match=re.escape(name)):
        run(PushConfig(model, name))
