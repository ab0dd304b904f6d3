"""The collected answers are read as far as the files can be."""

from __future__ import annotations

import json
from pathlib import Path

from mlx_distill.compare.collected import read_collected
from tests.support.comparing import write_lines


def test_no_index_says_nothing(tmp_path: Path) -> None:
    assert read_collected(tmp_path) is None
    (tmp_path / "collect.json").write_text("[]")
    assert read_collected(tmp_path) is None


def test_index_counts_answers_and_journal_prices_them(tmp_path: Path) -> None:
    journal = [
        {"key": "a", "teacher": "anthropic:x", "model": "x-1", "cost_usd": 0.5},
        {"key": "b", "teacher": "anthropic:x", "model": "x-1", "cost_usd": None},
        {"key": "of other prompts", "model": "y", "cost_usd": 9.0},
        [1],
    ]
    write_lines(tmp_path / "teacher_data.jsonl", journal)
    (tmp_path / "collect.json").write_text(json.dumps({"answers": [{"key": key} for key in "abc"]}))
    found = read_collected(tmp_path)
    assert found
    assert (found.n_prompts, found.n_answered, found.models, found.cost_usd, found.n_priced) == (3, 2, ("x-1",), 0.5, 1)
