"""The figures of a report are those that a plain script computes from the raw files, and it notices where not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from mlx_distill.compare.config import CompareConfig
from mlx_distill.compare.run import run
from tests.conftest import REPOSITORY
from tests.support.adapters import make_adapter
from tests.support.comparing import make_data, make_prompts, write_lines


def recompute(folder: Path) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, from which this package cannot be imported by accident."""
    script = REPOSITORY / "scripts" / "recompute_report.py"
    assert "import mlx_distill" not in script.read_text() and "from mlx_distill" not in script.read_text()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-P", str(script), str(folder)], env=environment, capture_output=True, text=True, check=False
    )


def test_a_plain_script_finds_the_same_figures_and_tells_others(tiny_student: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    journal = [
        {"key": "a", "teacher": "anthropic:x", "model": "x-1", "cost_usd": 0.25},
        {"key": "b", "teacher": "anthropic:x", "model": "x-1", "cost_usd": 0.5},
    ]
    write_lines(data / "teacher_data.jsonl", journal)
    (data / "collect.json").write_text(json.dumps({"answers": [{"key": key} for key in "abc"]}))
    prompts = make_prompts(tmp_path / "prompts.jsonl")
    taught = [
        {"messages": [{"role": "user", "content": row["prompt"]}], "answer": f"```python\n{code}\n```"}
        for row, code in zip(map(json.loads, prompts.read_text().splitlines()), ("x = 1", "x ="), strict=True)
    ]
    result = run(
        CompareConfig(
            model=tiny_student,
            adapter=make_adapter(tiny_student, tmp_path / "adapter"),
            data=data,
            out=tmp_path / "out",
            test_prompts=prompts,
            teacher=f"recorded:{write_lines(tmp_path / 'teacher.jsonl', taught)}",
            max_tokens=4,
            test_rows=0,
        )
    )
    report = json.loads(result.report.read_text(encoding="utf-8"))
    assert report["history"]["collected"]["cost_usd"] == 0.75
    assert report["code"]["stands"]["python"]["teacher"] == {"n": 1, "of": 2}
    done = recompute(tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert " 0 differ." in done.stdout

    report["test"]["by_category"]["sql"]["distilled"]["loss"] += 0.001
    report["test"]["difference"]["loss"]["low"] -= 10
    report["history"]["collected"]["cost_usd"] = 0.5
    (tmp_path / "out" / "report.json").write_text(json.dumps(report))
    told = recompute(tmp_path / "out")
    assert told.returncode == 1
    named = ("sql: loss of the second", "all rows: lower bound of loss", "dollars")
    assert all(name in told.stdout for name in named), told.stdout
    assert " 3 differ." in told.stdout
