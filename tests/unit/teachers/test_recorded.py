"""The recorded teacher, through the stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.collect.config import CollectConfig
from mlx_distill.collect.run import run
from mlx_distill.errors import InputError, MissingError, TeacherError
from mlx_distill.models.context import ContextConfig
from mlx_distill.records import build_messages
from mlx_distill.storage.package_data import package_data_path


def recording(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recorded(prompt: str, answer: str, system: str = "", **more: Any) -> dict[str, Any]:
    return {"messages": [m.to_json() for m in build_messages(prompt, system)], "answer": answer, **more}


def collect(folder: Path, source: Path | str, *prompts: str, **settings: Any) -> dict[str, str]:
    """Return answers by prompt."""
    file = folder / "prompts.txt"
    file.write_text("\n".join(prompts))
    run(CollectConfig(out=folder / "out", teacher=f"recorded:{source}", prompts=file, **settings))
    lines = (folder / "out" / "teacher_data.jsonl").read_text().splitlines()
    return {record["messages"][-1]["content"]: record["answer"] for record in map(json.loads, lines)}


def test_recording_ignores_the_system_message(tmp_path: Path) -> None:
    file = recording(tmp_path / "r.jsonl", recorded("Queue?", "A line.", system="Be old."))
    assert collect(tmp_path, file, "Queue?", teacher_context=ContextConfig("Be new.")) == {"Queue?": "A line."}


def test_complete_answers_win_then_later_ones(tmp_path: Path) -> None:
    rows = [
        recorded("Queue?", "First."),
        recorded("Queue?", "Second."),
        recorded("Queue?", "Cut", stop_reason="max_tokens"),
        recorded("Stack?", "Cut", stop_reason="max_tokens"),
        recorded("Stack?", "Cut later", stop_reason="max_tokens"),
    ]
    answers = collect(tmp_path, recording(tmp_path / "r.jsonl", *rows), "Queue?", "Stack?")
    assert answers == {"Queue?": "Second.", "Stack?": "Cut later"}


def test_folder_stands_for_all_its_journals(tmp_path: Path) -> None:
    recording(tmp_path / "r" / "a.jsonl", recorded("A?", "A."))
    recording(tmp_path / "r" / "b.jsonl", recorded("B?", "B."))
    recording(tmp_path / "r" / "notes.txt", {"no": "journal"})
    assert collect(tmp_path, tmp_path / "r", "A?", "B?") == {"A?": "A.", "B?": "B."}


def test_replay_costs_nothing(tmp_path: Path) -> None:
    paid = recorded("A?", "A.", usage={"output_tokens": 9}, cost_usd=1.0, model=MODEL)
    collect(tmp_path, recording(tmp_path / "r.jsonl", paid), "A?")
    record = json.loads((tmp_path / "out" / "teacher_data.jsonl").read_text())
    assert (record["cost_usd"], record["usage"]["output_tokens"], record["model"]) == (None, 0, MODEL)


MODEL = "claude-sonnet-4-6"


def test_index_lists_every_prompt_and_why_one_failed(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": "A?"}, {"id": "b", "prompt": "B?"}, {"id": "c", "prompt": "A?", "split": "test"}]
    recording(tmp_path / "p.jsonl", *rows)
    teacher = f"recorded:{recording(tmp_path / 'r.jsonl', recorded('A?', 'A.'))}"
    result = run(CollectConfig(out=tmp_path / "out", teacher=teacher, prompts=tmp_path / "p.jsonl"))
    assert (result.n_prompts, result.n_answered, result.n_new) == (3, 2, 1)
    assert [(item.prompt_id, "has no answer to it" in item.reason) for item in result.failed] == [("b", True)]
    index = json.loads((tmp_path / "out" / "collect.json").read_text())
    assert [(item["id"], item["split"]) for item in index["answers"]] == [("a", None), ("b", None), ("c", "test")]
    keys = [item["key"] for item in index["answers"]]
    assert keys[0] == keys[2] != keys[1]
    assert [(item["prompt_id"], item["key"]) for item in index["unanswered"]] == [("b", keys[1])]


def test_recording_without_any_answer_is_an_error(tmp_path: Path) -> None:
    file = recording(tmp_path / "r.jsonl", recorded("A?", "A."))
    with pytest.raises(TeacherError, match="answered none of the 2 prompts") as raised:
        collect(tmp_path, file, "B?", "C?")
    assert len(raised.value.problems) == 2
    assert not (tmp_path / "out" / "collect.json").exists()


@pytest.mark.parametrize(("name", "error"), [("none.jsonl", MissingError), ("empty", InputError)])
def test_missing_recording_is_an_error(tmp_path: Path, name: str, error: type[Exception]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=name):
        collect(tmp_path, tmp_path / name, "A?")


def test_damaged_recording_names_its_lines(tmp_path: Path) -> None:
    file = recording(tmp_path / "r.jsonl", recorded("A?", "A."), {"answer": "?"}, {"messages": [], "answer": "?"})
    with pytest.raises(InputError) as raised:
        collect(tmp_path, file, "A?")
    assert [problem.split(" ")[0] for problem in raised.value.problems] == ["r.jsonl:2:", "r.jsonl:3:"]


def test_sample_answers_every_shipped_prompt(tmp_path: Path) -> None:
    result = run(CollectConfig(out=tmp_path, teacher="recorded:sample", prompts=package_data_path("prompts.jsonl")))
    assert (result.n_answered, result.n_prompts, result.failed) == (104, 104, ())
    assert result.stop_reasons == {"end_turn": 104}
    assert result.summary() == "104 of 104 answered, 0.00 USD"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_tokens": 0}, "max_tokens = 0"),
        ({"concurrency": 1001}, "concurrency = 1001"),
        ({"wait_minutes": -1.0}, "wait_minutes = -1"),
        ({"first_wait_seconds": 0.0}, "first_wait_seconds = 0"),
        ({"limit": 0}, "limit = 0"),
        ({"max_cost": 1.0, "track_costs": False}, "max_cost needs track_costs"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CollectConfig(out=tmp_path, teacher="recorded:sample", **setting)
