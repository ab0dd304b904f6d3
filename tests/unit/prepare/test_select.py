"""Selection: one answer for each current prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_distill.errors import InputError, MissingError
from mlx_distill.prepare.select import select
from tests.support.teacher_records import record, write_index, write_records


def test_without_an_index_the_newest_complete_answer_counts(tmp_path: Path) -> None:
    records = [
        record("What is a heap?", "old", id="a"),
        record("What is a trie?", "only", id="b"),
        record("What is a heap?", "new", id="a", system="Be brief."),
        record("What is a heap?", "cut of", id="a", stop_reason="max_tokens", system="Be long."),
    ]
    selection = select(write_records(tmp_path, records))
    assert [(item.prompt_id, item.answer) for item in selection.records] == [("a", "new"), ("b", "only")]
    assert [(item.key, item.reason) for item in selection.rejected] == [
        (records[0].key, "superseded"),
        (records[3].key, "not complete"),
    ]
    assert (selection.n_records, selection.n_unanswered) == (4, 0)


def test_index_decides_order_id_family_category_and_split(tmp_path: Path) -> None:
    first, second = record("What is a heap?", id="old-a"), record("What is a trie?", id="b", split="train")
    stale = record("What is a heap?", id="old-a", system="other settings")
    write_records(tmp_path, [first, stale, second])
    renamed = record("What is a heap?", id="a", family="heaps", category="concepts", split="test")
    write_index(tmp_path, [second, renamed, record("What is a queue?", id="c")])
    selection = select(tmp_path)
    assert selection.records == [second, renamed]
    assert [(item.id, item.key, item.reason) for item in selection.rejected] == [
        ("old-a", stale.key, "not among the current prompts")
    ]
    assert selection.n_unanswered == 1
    assert [(prompt.family, prompt.split) for prompt in selection.prompts] == [
        ("b", "train"),
        ("heaps", "test"),
        ("c", None),
    ]


def test_two_current_prompts_with_one_key_make_one_row(tmp_path: Path) -> None:
    write_records(tmp_path, [record("What is a heap?", id="a")])
    write_index(tmp_path, [record("What is a heap?", id="a"), record("What is a heap?", id="twin")])
    selection = select(tmp_path)
    assert [item.prompt_id for item in selection.records] == ["a"]
    assert [(item.id, item.reason, item.detail) for item in selection.rejected] == [
        ("twin", "duplicate", "same prompt as a")
    ]


@pytest.mark.parametrize(
    ("text", "stop_reason", "detail", "expected"),
    [
        ("half", "max_tokens", "", "stop reason max_tokens"),
        ("", "refusal", "cyber", "stop reason refusal (cyber), empty answer"),
        (" \n", "end_turn", "", "stop reason end_turn, empty answer"),
    ],
)
def test_incomplete_answer_is_rejected_with_its_end(
    tmp_path: Path, text: str, stop_reason: str, detail: str, expected: str
) -> None:
    selection = select(write_records(tmp_path, [record("What?", text, stop_reason=stop_reason, detail=detail)]))
    assert selection.records == []
    assert [(item.reason, item.detail) for item in selection.rejected] == [("not complete", expected)]


def test_missing_records_name_the_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="mlx-distill collect"):
        select(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "truncated"),
        ("[]", "expected object"),
        (
            json.dumps({"answers": [{"key": "k", "id": "", "family": "f", "category": "c"}]}),
            r'"answers\[0\]\.id" is em',
        ),
        (
            json.dumps({"answers": [{"key": "k", "id": "i", "family": "f", "category": "c", "split": "dev"}]}),
            "unknown value 'dev'",
        ),
    ],
)
def test_broken_index_is_reported(tmp_path: Path, content: str, message: str) -> None:
    write_records(tmp_path, [record("What?")])
    (tmp_path / "collect.json").write_text(content)
    with pytest.raises(InputError, match=rf"collect\.json: .*{message}(?s:.*)run it again"):
        select(tmp_path)
