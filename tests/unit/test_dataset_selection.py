"""Which answers of a journal count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_distill.errors import InputError, MissingError
from mlx_distill.prepare.select import select
from tests.support.dataset_records import record, write_current, write_journal


def test_without_a_list_the_newest_complete_answer_to_a_prompt_counts(tmp_path: Path) -> None:
    records = [
        record("What is a heap?", "old", id="a"),
        record("What is a trie?", "only", id="b"),
        record("What is a heap?", "new", id="a", system="Be brief."),
        record("What is a heap?", "cut of", id="a", stop_reason="max_tokens", system="Be long."),
    ]
    selection = select(write_journal(tmp_path, records))
    assert [(item.prompt_id, item.answer) for item in selection.records] == [("a", "new"), ("b", "only")]
    assert [(item.key, item.reason) for item in selection.rejected] == [
        (records[0].key, "superseded"),
        (records[3].key, "not complete"),
    ]
    assert "max_tokens" in selection.rejected[1].detail
    assert selection.n_records == 4


def test_a_list_selects_by_key_orders_and_renames(tmp_path: Path) -> None:
    first, second = record("What is a heap?", id="old-a"), record("What is a trie?", id="b", split="train")
    stale = record("What is a heap?", id="old-a", system="other settings")
    write_journal(tmp_path, [first, stale, second])
    renamed = record("What is a heap?", id="a", family="heaps", category="concepts", split="test")
    missing = record("What is a queue?", id="c")
    write_current(tmp_path, [second, renamed, missing])
    selection = select(tmp_path)
    assert [item.prompt_id for item in selection.records] == ["b", "a"]
    assert selection.records[1].prompt == renamed.prompt
    assert [(item.id, item.key, item.reason) for item in selection.rejected] == [
        ("old-a", stale.key, "not among the current prompts")
    ]
    assert selection.n_unanswered == 1
    assert [(member.family, member.split) for member in selection.members] == [
        ("b", "train"),
        ("heaps", "test"),
        ("c", None),
    ]


def test_two_listed_prompts_with_one_key_make_one_row(tmp_path: Path) -> None:
    write_journal(tmp_path, [record("What is a heap?", id="a")])
    write_current(tmp_path, [record("What is a heap?", id="a"), record("What is a heap?", id="twin")])
    selection = select(tmp_path)
    assert [item.prompt_id for item in selection.records] == ["a"]
    assert [(item.id, item.reason, item.detail) for item in selection.rejected] == [
        ("twin", "duplicate", "asks the same as a")
    ]


@pytest.mark.parametrize(
    ("text", "stop_reason", "detail", "expected"),
    [
        ("half", "max_tokens", "", "stop reason max_tokens"),
        ("", "refusal", "cyber", "stop reason refusal (cyber), empty answer"),
        (" \n", "end_turn", "", "stop reason end_turn, empty answer"),
    ],
)
def test_an_incomplete_answer_says_how_it_ended(
    tmp_path: Path, text: str, stop_reason: str, detail: str, expected: str
) -> None:
    selection = select(write_journal(tmp_path, [record("What?", text, stop_reason=stop_reason, detail=detail)]))
    assert selection.records == ()
    assert selection.rejected[0].detail == expected


def test_a_missing_journal_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="mlx-distill collect"):
        select(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", '"answers" is not a list'),
        (json.dumps({"answers": [{"key": "k", "id": "", "family": "f", "category": "c"}]}), "id must be non-empty"),
        (
            json.dumps({"answers": [{"key": "k", "id": "i", "family": "f", "category": "c", "split": "dev"}]}),
            "'dev', not one of train",
        ),
        (json.dumps({"answers": ["k"]}), r"answers\[1\]: must be an object"),
    ],
)
def test_a_broken_list_is_named(tmp_path: Path, content: str, message: str) -> None:
    write_journal(tmp_path, [record("What?")])
    (tmp_path / "collect.json").write_text(content)
    with pytest.raises(InputError, match=message):
        select(tmp_path)
