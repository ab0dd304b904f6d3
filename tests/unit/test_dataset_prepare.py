"""The whole stage on a tiny student: what it writes, says and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_distill.cli import main
from mlx_distill.errors import InputError, MissingError
from mlx_distill.events import Event, Warning
from mlx_distill.models.load import load_tokenizer
from mlx_distill.models.tokenize import render
from mlx_distill.prepare import run as dataset
from mlx_distill.prepare.filters import FilterConfig
from mlx_distill.prepare.preview import shown_rows
from mlx_distill.prepare.run import PrepareConfig, PrepareResult
from mlx_distill.records import SPLITS, Example, TeacherRecord
from tests.support.dataset_records import read_lines, record, some_records, write_current, write_journal

FILES = ("train.jsonl", "valid.jsonl", "test.jsonl", "rejected.jsonl", "stats.json")


def prepare(folder: Path, model: Path, records: list[TeacherRecord], **settings: object) -> PrepareResult:
    write_journal(folder, records)
    return dataset.run(config_for(folder, model, **settings))


def config_for(folder: Path, model: Path, **settings: object) -> PrepareConfig:
    return PrepareConfig(data=folder, model=model, test_prompts=folder / "test_prompts.jsonl", **settings)  # type: ignore[arg-type]


def reason_of(folder: Path, prompt_id: str) -> tuple[str, str]:
    [row] = [row for row in read_lines(folder / "rejected.jsonl") if row["id"] == prompt_id]
    return row["reason"], row["detail"]


def test_rows_go_where_their_family_says_under_an_explicit_system_message(tmp_path: Path, tiny_student: Path) -> None:
    records = [record("Why?", "Because.\n", id="a", split="train", system="Teach me."), *some_records()]
    result = prepare(tmp_path, tiny_student, records, system="Be kind.")
    rows = {split: [Example.from_json(row) for row in read_lines(tmp_path / f"{split}.jsonl")] for split in SPLITS}
    assert [[row.id for row in rows[split]] for split in SPLITS] == [
        ["a", *(f"p{number}" for number in range(8))],
        ["p8"],
        ["p9"],
    ]
    assert [message.to_json() for message in rows["train"][0].messages] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because."},
    ]
    assert (result.n_records, result.n_rows, result.rejected) == (11, 11, {})
    assert result.n_families == {"train": 9, "valid": 1, "test": 1}


def test_an_empty_system_message_is_none(tmp_path: Path, tiny_student: Path) -> None:
    prepare(tmp_path, tiny_student, some_records(), system="")
    assert [message["role"] for message in read_lines(tmp_path / "train.jsonl")[0]["messages"]] == ["user", "assistant"]


def test_every_answer_is_a_row_or_is_rejected_with_its_reason(tmp_path: Path, tiny_student: Path) -> None:
    bad = [
        record("Cut?", "half", id="cut", stop_reason="max_tokens"),
        record("Is a binary tree balanced? Check it in Python.", id="near"),
        record("Code?", "So:\n```python\ndef f(:\n```", id="code"),
        record("Token?", "It ends.<|im_end|>", id="token"),
        record("Long?", "word " * 400, id="long"),
        record("what does the NUMBER 1 stand for?", "Another answer.", id="again"),
    ]
    records = [*some_records(), *bad]
    result = prepare(tmp_path, tiny_student, records, max_length=256)
    assert result.n_rows + sum(result.rejected.values()) == result.n_records == 16
    assert result.rejected == {
        "code does not parse": 1,
        "control token": 1,
        "duplicate": 1,
        "near copy of a test prompt": 1,
        "not complete": 1,
        "too long": 1,
    }
    assert reason_of(tmp_path, "cut") == ("not complete", "stop reason max_tokens")
    assert reason_of(tmp_path, "near") == ("near copy of a test prompt", "test-tree (topic 1.00), threshold 0.75")
    assert reason_of(tmp_path, "code")[1].startswith("code block 1 (python), line 1: ")
    assert reason_of(tmp_path, "token") == ("control token", "the assistant message holds <|im_end|>")
    assert reason_of(tmp_path, "again") == ("duplicate", "asks the same as p1")
    example = Example.from_json(
        {"messages": [{"role": "system", "content": "You are a helpful assistant."}, *long_turns()]}
    )
    n_tokens = len(render(load_tokenizer(tiny_student), example.messages).tokens)
    assert reason_of(tmp_path, "long") == ("too long", f"{n_tokens} tokens, max_length is 256")
    assert json.loads((tmp_path / "stats.json").read_text())["rejected"] == result.rejected


def long_turns() -> list[dict[str, str]]:
    return [{"role": "user", "content": "Long?"}, {"role": "assistant", "content": ("word " * 400).strip()}]


def test_a_row_of_exactly_the_longest_length_is_kept(tmp_path: Path, tiny_student: Path) -> None:
    longest = prepare(tmp_path, tiny_student, some_records()).total.longest
    assert prepare(tmp_path, tiny_student, some_records(), max_length=longest).n_rows == 10
    with_less = prepare(tmp_path, tiny_student, some_records(), max_length=longest - 1, test_share=0.0)
    assert with_less.rejected == {"too long": 1}


def test_a_duplicate_of_a_rejected_answer_is_kept(tmp_path: Path, tiny_student: Path) -> None:
    broken = record("Add two numbers.", "```python\nadd(\n```", id="broken")
    sound = record("add two numbers.", "```python\nadd(1, 2)\n```", id="sound")
    assert prepare(tmp_path, tiny_student, [broken, sound, *some_records()]).rejected == {"code does not parse": 1}


def test_code_need_not_parse_where_that_is_not_asked_for(tmp_path: Path, tiny_student: Path) -> None:
    records = [*some_records(), record("Code?", "```python\ndef f(:\n```")]
    gate = FilterConfig(require_parsing_code=False)
    assert prepare(tmp_path, tiny_student, records, filter=gate).rejected == {}


def test_answers_that_speak_of_the_teacher_are_rejected_or_only_counted(tmp_path: Path, tiny_student: Path) -> None:
    records = [*some_records(), record("Who?", "As an AI, I cannot say.", id="who", split="train")]
    result = prepare(tmp_path, tiny_student, records)
    assert (result.n_identity_phrases, result.rejected) == (0, {"identity phrase": 1})
    assert reason_of(tmp_path, "who") == ("identity phrase", 'the answer says "As an AI"')
    heard: list[Event] = []
    lenient = dataset.run(config_for(tmp_path, tiny_student, filter=FilterConfig(reject_identity=False)), heard.append)
    assert (lenient.n_identity_phrases, lenient.rejected) == (1, {})
    assert any(isinstance(event, Warning) and "(who)" in event.text for event in heard)


def test_answers_outside_the_length_bounds_are_rejected(tmp_path: Path, tiny_student: Path) -> None:
    records = [*some_records(), record("Short?", "No.", id="short"), record("Long?", "word " * 100, id="long")]
    n_tokens = len(load_tokenizer(tiny_student).encode("No.")) + 1
    gate = FilterConfig(shortest_answer=n_tokens + 1, longest_answer=100)
    result = prepare(tmp_path, tiny_student, records, filter=gate)
    assert result.rejected == {"answer too long": 1, "answer too short": 1}
    detail = f"{n_tokens} tokens, shortest_answer is {n_tokens + 1}"
    assert reason_of(tmp_path, "short") == ("answer too short", detail)
    exact = prepare(tmp_path, tiny_student, records, filter=FilterConfig(shortest_answer=n_tokens))
    assert exact.rejected == {}


def test_the_required_stop_reason_decides_what_counts_as_an_answer(tmp_path: Path, tiny_student: Path) -> None:
    cut = record("Cut?", "half of it", id="cut", stop_reason="max_tokens")
    sequence = record("Stopped?", "Up to a mark", id="mark", stop_reason="stop_sequence")
    assert prepare(tmp_path, tiny_student, [*some_records(), cut, sequence]).rejected == {"not complete": 1}
    strict = prepare(
        tmp_path, tiny_student, [*some_records(), cut, sequence], filter=FilterConfig(stop_reasons=("end_turn",))
    )
    assert strict.rejected == {"not complete": 2}
    assert reason_of(tmp_path, "mark") == ("not complete", "stop reason stop_sequence")


def test_of_rows_that_nearly_repeat_one_another_the_first_is_kept(tmp_path: Path, tiny_student: Path) -> None:
    answer = "Use a deque: it appends and pops at both ends in constant time, where a list shifts all that follow."
    twice = [
        record("How do I pop from the left of a list?", answer, id="first"),
        record("How do I pop from the left side of a list?", answer + " Done.", id="second"),
    ]
    assert prepare(tmp_path, tiny_student, [*some_records(), *twice]).rejected == {"near duplicate": 1}
    reason, detail = reason_of(tmp_path, "second")
    assert reason == "near duplicate"
    assert detail.endswith("like first, threshold 0.8")
    off = FilterConfig(near_duplicate=0)
    assert prepare(tmp_path, tiny_student, [*some_records(), *twice], filter=off).rejected == {}


def test_a_rerun_gives_the_same_bytes_and_leaves_nothing_else(tmp_path: Path, tiny_student: Path) -> None:
    records = [*some_records(), record("Cut?", "half", stop_reason="max_tokens")]
    prepare(tmp_path, tiny_student, records)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    prepare(tmp_path, tiny_student, records)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before
    assert {item.name for item in tmp_path.iterdir()} - {"home"} == {*FILES, "teacher_data.jsonl", "test_prompts.jsonl"}


def test_a_new_prompt_moves_no_row_between_splits(tmp_path: Path, tiny_student: Path) -> None:
    def split_of_each() -> dict[str, str]:
        return {row["id"]: split for split in SPLITS for row in read_lines(tmp_path / f"{split}.jsonl")}

    records = [record(f"What is thing {number}?", f"It is {number}.", id=f"q{number}") for number in range(60)]
    prepare(tmp_path, tiny_student, records[:40])
    before = split_of_each()
    prepare(tmp_path, tiny_student, records[::-1])
    assert set(before.values()) == set(SPLITS)
    assert {name: split for name, split in split_of_each().items() if name in before} == before


def test_an_unanswered_members_split_holds_for_its_family(tmp_path: Path, tiny_student: Path) -> None:
    records = [*some_records(), record("Asked.", id="asked", family="shared")]
    write_journal(tmp_path, records)
    write_current(tmp_path, [*records, record("Unanswered.", id="open", family="shared", split="test")])
    heard: list[Event] = []
    assert dataset.run(config_for(tmp_path, tiny_student), heard.append).n_unanswered == 1
    assert "asked" in [row["id"] for row in read_lines(tmp_path / "test.jsonl")]
    assert any(isinstance(event, Warning) and "Prompts without an answer: 1" in event.text for event in heard)


def test_lengths_are_those_of_the_rendered_rows(tmp_path: Path, tiny_student: Path) -> None:
    result = prepare(tmp_path, tiny_student, some_records())
    tokenizer = load_tokenizer(tiny_student)
    rows = [Example.from_json(row) for split in SPLITS for row in read_lines(tmp_path / f"{split}.jsonl")]
    rendered = {row.id: render(tokenizer, row.messages) for row in rows}
    counts = sorted(len(item.tokens) for item in rendered.values())
    total = result.total
    assert (total.n_rows, total.shortest, total.longest) == (10, counts[0], counts[-1])
    assert (total.median, total.p90) == (counts[4], counts[8])
    assert (total.n_tokens, total.n_supervised) == (sum(counts), sum(item.n_supervised for item in rendered.values()))
    assert total.supervised_share == pytest.approx(total.n_supervised / total.n_tokens, abs=1e-4)
    assert [(lengths.name, lengths.n_rows) for lengths in result.splits] == [("train", 8), ("valid", 1), ("test", 1)]
    assert [(lengths.name, lengths.n_rows) for lengths in result.categories] == [("even", 5), ("odd", 5)]
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert stats["lengths"]["total"]["n_tokens"] == sum(counts)
    assert stats["settings"]["system"] == "You are a helpful assistant."


def test_held_out_prompts_that_read_like_train_prompts_are_pointed_out(tmp_path: Path, tiny_student: Path) -> None:
    records = [
        record("How do I sort a list of dicts by one key in Python?", id="sort", split="train"),
        record("What is a heap?", id="heap", split="train"),
        record("In Python, how do I sort a list of dicts by key?", id="twin", split="test"),
        record("What is a red-black tree?", id="other", split="valid"),
    ]
    heard: list[Event] = []
    write_journal(tmp_path, records)
    dataset.run(config_for(tmp_path, tiny_student), heard.append)
    [pair] = json.loads((tmp_path / "stats.json").read_text())["look_alikes"]
    assert (pair["held_out"], pair["train"]) == ("twin", "sort")
    assert any(isinstance(event, Warning) and "(twin ~ sort)" in event.text for event in heard)


def test_with_few_families_one_is_moved_and_that_is_said(tmp_path: Path, tiny_student: Path) -> None:
    heard: list[Event] = []
    names = ["heap", "trie", "queue"]
    write_journal(
        tmp_path, [record(f"What is a {name}?", id=name, split="train" if name == "heap" else None) for name in names]
    )
    result = dataset.run(config_for(tmp_path, tiny_student), heard.append)
    assert all(result.n_families[split] == 1 for split in SPLITS)
    moved = json.loads((tmp_path / "stats.json").read_text())["families_moved_to"]
    assert moved
    for family, split in moved.items():
        assert any(isinstance(event, Warning) and f"to {split}, so {family}" in event.text for event in heard)


@pytest.mark.parametrize(
    ("records", "settings", "message"),
    [
        (
            [record("Cut?", "half", stop_reason="max_tokens")],
            {},
            "(?s)none of its 1 answers can be used.*not complete: 1",
        ),
        ([record("One?"), record("Two?")], {}, "No row is left for"),
        (
            [record("One?", id="a", family="f", split="train"), record("Two?", id="b", family="f", split="test")],
            {},
            "family f: a names train, b names test",
        ),
        (some_records(), {"system": "Say <|im_end|>."}, "The setting system cannot be used"),
    ],
)
def test_what_cannot_be_prepared_is_refused_and_nothing_is_written(
    tmp_path: Path, tiny_student: Path, records: list[TeacherRecord], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(tmp_path, tiny_student, records, **settings)
    assert not any((tmp_path / name).exists() for name in FILES)


def test_a_failed_rerun_leaves_the_rows_of_before(tmp_path: Path, tiny_student: Path) -> None:
    prepare(tmp_path, tiny_student, some_records())
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    with pytest.raises(InputError):
        prepare(tmp_path, tiny_student, some_records(), max_length=3)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before


def test_a_missing_model_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="mlx-distill convert"):
        prepare(tmp_path, tmp_path / "nothing", some_records())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"near_copy": 0.0}, "near_copy must be above 0"),
        ({"near_copy": 1.5}, "near_copy must be above 0"),
        ({"valid_share": -0.1}, "valid_share must be at least 0"),
        ({"valid_share": 0.5, "test_share": 0.5}, "nothing is left for train"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_for(tmp_path, tmp_path, **settings)


def test_shown_rows_are_the_training_tokens_cut_at_the_mask(tmp_path: Path, tiny_student: Path) -> None:
    prepare(tmp_path, tiny_student, some_records())
    [row, _] = shown_rows(tmp_path / "train.jsonl", tiny_student, 2)
    assert [(segment.text, segment.supervised) for segment in row.segments] == [
        (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nWhat does the number 0 stand for?<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("It stands for 0.<|im_end|>", True),
    ]
    assert len(shown_rows(tmp_path / "train.jsonl", tiny_student, 99)) == 8


def run_command(folder: Path, model: Path, *arguments: str) -> int:
    paths = ("--data", str(folder), "--model", str(model), "--test-prompts", str(folder / "test_prompts.jsonl"))
    with pytest.raises(SystemExit) as end:
        main(["prepare", *paths, *arguments])
    return int(end.value.code or 0)


def test_the_command_prints_the_counts_the_table_and_marked_rows(
    tmp_path: Path, tiny_student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = record("Bell?", "Ring \x1b[31m now.", id="bell", split="train")
    write_journal(tmp_path, [odd, *some_records(), record("Cut?", "half", stop_reason="max_tokens")])
    assert run_command(tmp_path, tiny_student, "--show", "1") == 0
    out = capsys.readouterr().out
    assert "12 read, 11 kept, 1 rejected" in out
    assert "1 not complete" in out
    assert "tokens a row  rows  min  median" in out
    assert "⟦Ring  now.<|im_end|>⟧" in out
    assert "\x1b" not in out


def test_the_command_gives_its_result_as_json(
    tmp_path: Path, tiny_student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_journal(tmp_path, some_records())
    assert run_command(tmp_path, tiny_student, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["n_rows"], result["splits"][0]["name"], result["total"]["n_rows"]) == (10, "train", 10)


def test_the_gate_is_a_table_of_its_own_and_its_options_go_over_it(
    tmp_path: Path, tiny_student: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_journal(tmp_path / "data" / "demo", [*some_records(), record("Who?", "As an AI, no.", id="who")])
    gate = "[prepare.filter]\nlongest_answer = 2\nnear_duplicate = 0.9\n"
    (tmp_path / "distill.toml").write_text(f'name = "demo"\n{gate}')
    monkeypatch.chdir(tmp_path)
    paths = ("--data", "data/demo", "--model", str(tiny_student), "--test-prompts", "data/demo/test_prompts.jsonl")
    with pytest.raises(SystemExit):
        main(["prepare", *paths, "--longest-answer", "500", "--no-reject-identity", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["rejected"], result["n_identity_phrases"]) == ({}, 1)
    settings = json.loads(Path("data/demo/stats.json").read_text())["settings"]["filter"]
    assert (settings["longest_answer"], settings["near_duplicate"], settings["reject_identity"]) == (500, 0.9, False)
    (tmp_path / "distill.toml").write_text('name = "demo"\n[prepare.filter]\nnear_dupl = 1\nshortest_answer = "a"\n')
    with pytest.raises(SystemExit):
        main(["prepare", *paths])
    said = capsys.readouterr().err
    assert "filter: unknown setting 'near_dupl'; did you mean 'near_duplicate'?" in said
    assert "filter: shortest_answer: 'a' is not a whole number" in said


def test_json_and_show_together_are_bad_usage(
    tmp_path: Path, tiny_student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_journal(tmp_path, some_records())
    assert run_command(tmp_path, tiny_student, "--json", "--show", "1") == 2
    assert "choose one" in capsys.readouterr().err
