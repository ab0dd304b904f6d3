"""What is kept in memory of answers while asking, and how whole records are found again in the journal."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from mlx_distill.collect.run import CollectConfig, run
from mlx_distill.errors import InputError
from mlx_distill.records import Answer, Prompt, Request, build_messages
from mlx_distill.storage.atomic import json_text
from mlx_distill.teachers.asking import Asked, ask_all, estimate
from tests.unit.test_teachers import PATIENCE, Parrot, ask, repeat


def peak_bytes(folder: Path, n_prompts: int, n_letters: int) -> int:
    """The most that asking held at any moment, with answers of so many letters."""
    teacher = Parrot(lambda text, _nth: Answer("x" * n_letters, "end_turn", "parrot-1"))
    asks = [(Prompt(f"p{n}", f"p{n}", "f"), Request("parrot", build_messages(f"p{n}"), 10)) for n in range(n_prompts)]
    tracemalloc.start()
    try:
        asked = ask_all(teacher, asks, folder / "journal.jsonl", concurrency=3, patience=PATIENCE)
        assert len(asked.known) == n_prompts
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_text_of_answers_is_not_held(tmp_path: Path) -> None:
    short = peak_bytes(tmp_path / "short", 500, 10)
    long = peak_bytes(tmp_path / "long", 500, 40_000)  # 20 MB in all
    assert long - short < 1_000_000
    again = peak_bytes(tmp_path / "long", 500, 0)
    assert again - short < 1_000_000


def test_a_prompt_takes_little_memory(tmp_path: Path) -> None:
    few, many = (peak_bytes(tmp_path / str(n), n, 1000) for n in (100, 2100))
    assert (many - few) / 2000 < 600  # without the prompt itself, whose text and id are here before


def test_records_that_are_read_back_are_those_that_count(tmp_path: Path) -> None:
    def script(text: str, nth: int) -> Answer:
        if text == "ü" and nth == 1:
            return Answer("cut", "max_tokens", "parrot-1")
        if text == "c":
            return Answer("", "refusal", "parrot-1", detail="category")
        return repeat(text, nth)

    teacher = Parrot(script)
    teacher.longest_retry = 1000
    asked = ask(teacher, tmp_path, "a", "ü", "c", "ü")
    assert asked.n_new == 3
    assert texts(asked) == {"a": "A", "ü": "Ü", "c": ""}
    retried = asked.records()[asked.keys[1]]
    assert (retried.key, retried.request.max_tokens) == (asked.keys[1], 20)
    assert asked.keys == (*asked.wanted, asked.wanted[1])

    with (tmp_path / "journal.jsonl").open("a") as journal:
        journal.write('{"messages": [{"role": "user", "content": "ü')
    later = ask(Parrot(script), tmp_path, "d", "c", "ü", "a")
    assert texts(later) == {"d": "D", "c": "", "ü": "Ü", "a": "A"}
    assert {key: later.known[key] for key in asked.wanted} == asked.known
    assert later.known[asked.wanted[2]].detail == "category"


def texts(asked: Asked) -> dict[str, str]:
    return {record.prompt_id: record.answer for record in asked.records().values()}


def test_an_answer_that_counts_is_the_last_complete_one(tmp_path: Path) -> None:
    request = Request("parrot", build_messages("a"), 10)
    lines = [("end_turn", "first"), ("end_turn", "second"), ("max_tokens", "cut")]
    (tmp_path / "journal.jsonl").write_text(
        "".join(
            json.dumps(
                {"teacher": "parrot", "max_tokens": 10, "answer": text, "stop_reason": reason}
                | {"messages": [message.to_json() for message in request.messages]}
            )
            + "\n\n"
            for reason, text in lines
        )
    )
    teacher = Parrot(repeat)
    [record] = ask(teacher, tmp_path, "a").records().values()
    assert (record.answer, teacher.asked) == ("second", [])


def test_a_journal_that_was_changed_meanwhile_is_said_to_be(tmp_path: Path) -> None:
    asked = ask(Parrot(repeat), tmp_path, "a", "b")
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(b"\n" + journal.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"journal\.jsonl: it was changed while it was read"):
        asked.records()


def test_an_estimate_passes_over_a_line_that_is_being_written(tmp_path: Path) -> None:
    asked = ask(Parrot(repeat), tmp_path, "a", "b")
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    asks = [(Prompt(text, text, text), Request("parrot", build_messages(text), 10)) for text in "ab"]
    assert len(asked.known) == 2
    assert estimate(Parrot(repeat), asks, journal).n_to_ask == 1


def test_the_index_lists_every_prompt_though_two_ask_the_same(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": "A?"}, {"id": "b", "prompt": "B?"}, {"id": "c", "prompt": "A?", "split": "test"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [{"messages": [{"role": "user", "content": "A?"}], "answer": "A."}]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    teacher = f"recorded:{tmp_path / 'r.jsonl'}"
    result = run(CollectConfig(out=tmp_path / "out", teacher=teacher, prompts=tmp_path / "p.jsonl"))
    assert (result.n_prompts, result.n_answered, result.n_new) == (3, 2, 1)
    written = (tmp_path / "out" / "collect.json").read_text()
    index = json.loads(written)
    assert written == json_text(index)
    assert [(item["id"], item["split"]) for item in index["answers"]] == [("a", None), ("b", None), ("c", "test")]
    keys = [item["key"] for item in index["answers"]]
    assert keys[0] == keys[2] != keys[1]
    assert [(item["prompt_id"], item["key"]) for item in index["unanswered"]] == [("b", keys[1])]


OPENED = """
import sys
from mlx_distill.cli import main
names = []
sys.addaudithook(lambda event, args: names.append(str(args[0])) if event == "open" else None)
try:
    main(sys.argv[1:])
finally:
    print(sum(name.endswith("prompts.txt") for name in names))
"""


def test_the_files_of_a_teacher_that_costs_nothing_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("A?\n")
    (tmp_path / "r.jsonl").write_text('{"messages": [{"role": "user", "content": "A?"}], "answer": "A."}\n')
    command = ["collect", "--prompts", "prompts.txt", "--teacher", "recorded:r.jsonl", "--out", "out", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", OPENED, *command], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "2"  # by the stage, and to note what it was made from
