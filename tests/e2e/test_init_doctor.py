"""`init` and `doctor` as commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Finished
from tests.support.local_http import Unavailable, serving

Cli = Callable[..., Finished]


def test_init_says_what_to_type_next(tmp_path: Path, cli: Cli) -> None:
    finished = cli("init", "demo", cwd=tmp_path)
    assert finished.code == 0, finished.err
    assert "cd demo" in finished.out and "export ANTHROPIC_API_KEY" in finished.out
    assert finished.out.rstrip().endswith("mlx-distill run")
    again = cli("init", "demo", cwd=tmp_path)
    assert again.code == 1 and "already exists" in again.err
    sample = cli("init", "other", "--sample", "--json", cwd=tmp_path)
    assert json.loads(sample.out)["student"] == "sample"


def test_doctor_checks_this_machine(cli: Cli, tmp_path: Path) -> None:
    with serving(Unavailable) as hub:
        environment = {"ANTHROPIC_API_KEY": "sk-ant-secret", "HF_ENDPOINT": hub}
        finished = cli("doctor", "--json", cwd=tmp_path, env=environment)
    assert finished.code == 0, finished.err
    found = json.loads(finished.out)
    checks = {check["name"]: check for check in found["checks"]}
    assert found["ok"] is True
    assert {"Python", "System", "MLX", "Memory", "Disk", "Folder", "API key", "Hub", "Sample"} <= set(checks)
    assert "secret" not in finished.out
    assert checks["Hub"]["found"] == f"{hub} answers"
    assert all(check["advice"] for check in found["checks"] if check["status"] != "ok")


def test_brief_doctor_prints_only_what_needs_attention(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "distill.toml").write_text('name = "x"\nteacher = "anthropic:m"\nstudent = "a/b"\n')
    finished = cli("doctor", "--brief", cwd=tmp_path, env={"HF_HUB_OFFLINE": "1"})
    assert finished.code == 0
    assert "offline mode; a/b is not in the cache" in finished.out and "API key" in finished.out
    assert "Python" not in finished.out
    assert finished.out.splitlines()[-1].endswith("0 problems")
