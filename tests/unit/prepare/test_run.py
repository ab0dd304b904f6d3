"""The whole stage on a tiny student: what it writes, reports and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.cli import main
from mlx_distill.config import parse
from mlx_distill.errors import InputError, MissingError
from mlx_distill.events import Event, Warning
from mlx_distill.models.load import load_tokenizer
from mlx_distill.models.tokenize import render
from mlx_distill.prepare import FilterConfig, PrepareConfig, PrepareResult
from mlx_distill.prepare.rows import preview_rows
from mlx_distill.prepare.run import run
from mlx_distill.records import SPLITS, Example, TeacherRecord
from tests.support.teacher_records import good_records, read_lines, record, write_index, write_records

FILES = ("train.jsonl", "valid.jsonl", "test.jsonl", "rejected.jsonl", "stats.json")


def config_for(folder: Path, model: Path, **settings: Any) -> PrepareConfig:
    return PrepareConfig(data=folder, model=model, test_prompts=folder / "test_prompts.jsonl", **settings)


def prepare(folder: Path, model: Path, records: list[TeacherRecord], **settings: Any) -> PrepareResult:
    write_records(folder, records)
    return run(config_for(folder, model, **settings))


def warnings_of(config: PrepareConfig) -> list[str]:
    heard: list[Event] = []
    run(config, heard.append)
    return [event.text for event in heard if isinstance(event, Warning)]


def read_rows(folder: Path) -> dict[str, list[Example]]:
    return {split: [Example.from_json(row) for row in read_lines(folder / f"{split}.jsonl")] for split in SPLITS}


def read_stats(folder: Path) -> dict[str, Any]:
    stats: dict[str, Any] = json.loads((folder / "stats.json").read_text())
    return stats


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def reasons(folder: Path) -> dict[str, tuple[str, str]]:
    return {row["id"]: (row["reason"], row["detail"]) for row in read_lines(folder / "rejected.jsonl")}


def test_rows_follow_their_family_with_the_given_system(tmp_path: Path, tiny_student: Path) -> None:
    records = [record("Why?", "Because.\n", id="a", split="train", system="Teach me."), *good_records()]
    result = prepare(tmp_path, tiny_student, records, system="Be kind.")
    rows = read_rows(tmp_path)
    assert [[row.id for row in rows[split]] for split in SPLITS] == [
        ["a", *(f"p{n}" for n in range(8))],
        ["p8"],
        ["p9"],
    ]
    assert [(message.role, message.content) for message in rows["train"][0].messages] == [
        ("system", "Be kind."),
        ("user", "Why?"),
        ("assistant", "Because."),
    ]
    assert (result.n_records, result.n_rows, result.rejected) == (11, 11, {})
    assert result.n_families == {"train": 9, "valid": 1, "test": 1}
    assert result.summary() == "train 9, valid 1, test 1 rows"
    prepare(tmp_path, tiny_student, records, system="")
    assert [message.role for message in read_rows(tmp_path)["train"][0].messages] == ["user", "assistant"]


def test_every_answer_is_a_row_or_is_rejected_with_a_reason(tmp_path: Path, tiny_student: Path) -> None:
    bad = [
        record("Cut?", "half", id="cut", stop_reason="max_tokens"),
        record("Half?", "One \ud83d of two.", id="half"),
        record("Write a Python function to check whether a binary tree is complete.", id="leak"),
        record("Code?", "So:\n```python\ndef f(:\n```", id="code"),
        record("Who?", "As an AI, I cannot say.", id="who"),
        record("Token?", "It ends.<|im_end|>", id="token"),
        record("what does the NUMBER 1 stand for?", "Another answer.", id="again"),
    ]
    result = prepare(tmp_path, tiny_student, [*good_records(), *bad])
    assert result.n_rows + sum(result.rejected.values()) == result.n_records == 17
    assert reasons(tmp_path) == {
        "cut": ("not complete", "stop reason max_tokens"),
        "half": ("invalid text", "contains \\ud83d, which is half of a character"),
        "leak": ("contamination", "contains 0.90 of test-tree, contamination_threshold is 0.7"),
        "code": ("code does not parse", "code block 1 (python), line 1: invalid syntax"),
        "who": ("identity phrase", 'the answer says "As an AI"'),
        "token": ("control token", "the assistant message contains <|im_end|>"),
        "again": ("duplicate", "same prompt as p1"),
    }
    assert read_stats(tmp_path)["rejected"] == result.rejected == dict.fromkeys(sorted(result.rejected), 1)


def test_token_limits_are_inclusive(tmp_path: Path, tiny_student: Path) -> None:
    longest = prepare(tmp_path, tiny_student, good_records()).total.longest
    tokenizer = load_tokenizer(tiny_student)
    n_short, n_long = (len(tokenizer.encode(text)) + 1 for text in ("No.", ("word " * 100).strip()))
    records = [*good_records(), record("Short?", "No.", id="short"), record("Long?", "word " * 100, id="long")]
    at_limit = FilterConfig(min_answer_tokens=n_short)
    result = prepare(tmp_path, tiny_student, records, max_length=longest, filter=at_limit)
    assert result.rejected == {"too long": 1}
    beyond = FilterConfig(min_answer_tokens=n_short + 1, max_answer_tokens=100)
    prepare(tmp_path, tiny_student, records, filter=beyond)
    assert reasons(tmp_path) == {
        "short": ("answer too short", f"{n_short} tokens, min_answer_tokens is {n_short + 1}"),
        "long": ("answer too long", f"{n_long} tokens, max_answer_tokens is 100"),
    }


def test_filters_can_be_switched_off(tmp_path: Path, tiny_student: Path) -> None:
    answer = "The same long answer in both rows, word for word and without any change at all."
    records = [
        *good_records(),
        record("Code?", "```python\ndef f(:\n```"),
        record("Who?", "As an AI, I cannot say.", id="who", split="train"),
        record("One?", answer),
        record("Two?", answer),
    ]
    write_records(tmp_path, records)
    lenient = FilterConfig(require_parsing_code=False, reject_identity=False, dedup_threshold=0)
    config = config_for(tmp_path, tiny_student, filter=lenient)
    assert any("calls itself a model: 1 (who)" in text for text in warnings_of(config))
    assert (run(config).rejected, run(config).identity_phrases) == ({}, ("who",))


def test_rerun_gives_the_same_bytes_and_no_other_file(tmp_path: Path, tiny_student: Path) -> None:
    records = [*good_records(), record("Cut?", "half", stop_reason="max_tokens")]
    prepare(tmp_path / "one", tiny_student, records)
    before = contents(tmp_path / "one")
    prepare(tmp_path / "one", tiny_student, records)
    prepare(tmp_path / "two", tiny_student, records)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == before
    assert {item.name for item in (tmp_path / "one").iterdir()} == {*FILES, "teacher_data.jsonl", "test_prompts.jsonl"}


def test_split_of_an_unanswered_prompt_holds_for_its_family(tmp_path: Path, tiny_student: Path) -> None:
    records = [*good_records(), record("Asked.", id="asked", family="shared")]
    write_records(tmp_path, records)
    write_index(tmp_path, [*records, record("Unanswered.", id="open", family="shared", split="test")])
    assert any("without an answer: 1" in text for text in warnings_of(config_for(tmp_path, tiny_student)))
    assert "asked" in [row.id for row in read_rows(tmp_path)["test"]]


def test_token_counts_are_those_of_the_rendered_rows(tmp_path: Path, tiny_student: Path) -> None:
    result = prepare(tmp_path, tiny_student, good_records())
    tokenizer = load_tokenizer(tiny_student)
    rendered = [render(tokenizer, row.messages) for rows in read_rows(tmp_path).values() for row in rows]
    counts = sorted(len(row.tokens) for row in rendered)
    n_supervised = sum(row.n_supervised for row in rendered)
    total = result.total
    assert (total.shortest, total.median, total.p90, total.longest) == (counts[0], counts[4], counts[8], counts[-1])
    assert (total.n_rows, total.n_tokens, total.n_supervised) == (10, sum(counts), n_supervised)
    assert total.supervised_share == pytest.approx(n_supervised / sum(counts), abs=1e-4)
    assert [(stats.name, stats.n_rows) for stats in result.splits] == [("train", 8), ("valid", 1), ("test", 1)]
    assert [(stats.name, stats.n_rows) for stats in result.categories] == [("even", 5), ("odd", 5)]
    assert read_stats(tmp_path)["lengths"]["total"]["n_tokens"] == sum(counts)
    assert read_stats(tmp_path)["settings"]["system"] == "You are a helpful assistant."


def test_train_prompt_close_to_a_held_out_one_is_reported(tmp_path: Path, tiny_student: Path) -> None:
    records = [
        record("How do I sort a list of dicts by one key in Python?", id="sort", split="train"),
        record("What is a heap?", id="heap", split="train"),
        record("In Python, how do I sort a list of dicts by key?", id="twin", split="test"),
        record("Why are red-black trees useful?", id="other", split="valid"),
    ]
    write_records(tmp_path, records)
    assert any("1 (twin ~ sort)" in text for text in warnings_of(config_for(tmp_path, tiny_student)))
    assert read_stats(tmp_path)["look_alikes"] == [{"held_out": "twin", "train": "sort", "similarity": 0.7}]


def test_family_that_moves_to_an_empty_split_is_reported(tmp_path: Path, tiny_student: Path) -> None:
    records = [record(f"What is a {name}?", id=name) for name in ("trie", "queue")]
    write_records(tmp_path, [record("What is a heap?", id="heap", split="train"), *records])
    warnings = warnings_of(config_for(tmp_path, tiny_student))
    assert {split: len(rows) for split, rows in read_rows(tmp_path).items()} == dict.fromkeys(SPLITS, 1)
    moved = read_stats(tmp_path)["families_moved_to"]
    assert moved
    assert all(any(f"into {split}, so {family}" in text for text in warnings) for family, split in moved.items())


@pytest.mark.parametrize(
    ("records", "settings", "message"),
    [
        ([record("Cut?", "half", stop_reason="max_tokens")], {}, "(?s)none of its 1 answers.*not complete: 1"),
        ([record("One?"), record("Two?")], {}, "No rows are left for"),
        (
            [record("One?", id="a", family="f", split="train"), record("Two?", id="b", family="f", split="test")],
            {},
            "family f: a names train, b names test",
        ),
        (good_records(), {"system": "Say <|im_end|>."}, "The setting system cannot be used"),
    ],
)
def test_input_that_cannot_be_prepared_changes_no_file(
    tmp_path: Path, tiny_student: Path, records: list[TeacherRecord], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(tmp_path / "new", tiny_student, records, **settings)
    assert not any((tmp_path / "new" / name).exists() for name in FILES)
    prepare(tmp_path / "old", tiny_student, good_records())
    before = contents(tmp_path / "old")
    with pytest.raises(InputError):
        prepare(tmp_path / "old", tiny_student, records, **settings)
    assert contents(tmp_path / "old") == before


def test_missing_model_names_the_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="mlx-distill convert"):
        prepare(tmp_path, tmp_path / "nothing", good_records())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contamination_threshold": 0.0}, "contamination_threshold = 0.0: expected float > 0"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "nothing is left for train"),
        ({"filter": {"min_answer_tokens": 5, "max_answer_tokens": 4}}, r"max_answer_tokens \(4\) is below min"),
        ({"near_copy": 0.5}, "near_copy is called contamination_threshold now"),
        ({"filter": {"shortest_answer": 3}}, "filter: shortest_answer is called min_answer_tokens now"),
        ({"filter": {"stop_reasons": ["stop"]}}, "filter: stop_reasons no longer exists: only complete answers"),
    ],
)
def test_impossible_and_old_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(PrepareConfig, {"data": "data", "model": "model", **settings}, "prepare")
    assert re.search(message, "\n".join(caught.value.problems))


def test_preview_cuts_the_text_at_the_mask(tmp_path: Path, tiny_student: Path) -> None:
    prepare(tmp_path, tiny_student, good_records())
    [(row, segments), _] = preview_rows(tmp_path / "train.jsonl", tiny_student, 2)
    assert row.example.id == "p0"
    assert segments == [
        (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nWhat does the number 0 stand for?<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("It stands for 0.<|im_end|>", True),
    ]
    assert len(list(preview_rows(tmp_path / "train.jsonl", tiny_student, 99))) == 8


def run_command(folder: Path, model: Path, *arguments: str) -> int:
    paths = ("--data", str(folder), "--model", str(model), "--test-prompts", str(folder / "test_prompts.jsonl"))
    with pytest.raises(SystemExit) as end:
        main(["prepare", *paths, *arguments])
    return int(end.value.code or 0)


def test_command_prints_counts_table_and_marked_rows(
    tmp_path: Path, tiny_student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = record("Bell?", "Ring \x1b[31m now.", id="bell", split="train")
    write_records(tmp_path, [odd, *good_records(), record("Cut?", "half", stop_reason="max_tokens")])
    assert run_command(tmp_path, tiny_student, "--show", "1") == 0
    out = capsys.readouterr().out
    assert "12 read, 11 kept, 1 rejected" in out
    assert "1 not complete" in out
    assert "tokens a row    rows   min  median" in out
    assert "⟦Ring  now.<|im_end|>⟧" in out
    assert "\x1b" not in out


def test_command_prints_its_result_as_json(
    tmp_path: Path, tiny_student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(tmp_path, good_records())
    assert run_command(tmp_path, tiny_student, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["n_rows"], result["splits"][0]["name"], result["total"]["n_rows"]) == (10, "train", 10)
    assert run_command(tmp_path, tiny_student, "--json", "--show", "1") == 2
    assert "choose one" in capsys.readouterr().err


def test_options_override_the_filter_table_of_the_project(
    tmp_path: Path, tiny_student: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_records(tmp_path / "data" / "demo", [*good_records(), record("Who?", "As an AI, no.", id="who")])
    table = "[prepare.filter]\nmax_answer_tokens = 2\ndedup_threshold = 0.9\n"
    (tmp_path / "distill.toml").write_text(f'name = "demo"\n{table}')
    monkeypatch.chdir(tmp_path)
    assert run_command(folder, tiny_student, "--max-answer-tokens", "500", "--no-reject-identity", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["rejected"], result["identity_phrases"]) == ({}, ["who"])
    settings = read_stats(folder)["settings"]["filter"]
    assert (settings["max_answer_tokens"], settings["dedup_threshold"], settings["reject_identity"]) == (
        500,
        0.9,
        False,
    )
