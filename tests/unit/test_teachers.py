"""Teachers by name, the recorded teacher, prices, pacing, and the journalled way to ask."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from mlx_distill.collect.run import CollectConfig, run
from mlx_distill.errors import InputError, MissingError, TeacherError
from mlx_distill.events import Event, Progress, Warning
from mlx_distill.records import Answer, Prompt, Request, Usage, build_messages
from mlx_distill.storage.journal import Journal
from mlx_distill.storage.package_data import shipped
from mlx_distill.teachers import NoAnswerError, TryLaterError, open_teacher
from mlx_distill.teachers.asking import Asked, ask_all
from mlx_distill.teachers.asking.pacing import Pace, Patience
from mlx_distill.teachers.money.prices import PRICES, Price, Prices, cost_of, price_of

PATIENCE = Patience(limit_seconds=5.0, first_wait_seconds=0.01)


class Parrot:
    """A teacher that does with the nth asking of a prompt what its script says."""

    name = "parrot"
    terms = ""
    billed_model = ""
    longest_retry = 0
    limits = ()

    def __init__(self, script: Callable[[str, int], Answer]) -> None:
        self._script = script
        self.asked: list[str] = []
        self.entered = 0

    async def __aenter__(self) -> Self:
        self.entered += 1
        return self

    async def answer(self, request: Request) -> Answer:
        text = request.messages[-1].content
        self.asked.append(text)
        await asyncio.sleep(0)
        return self._script(text, self.asked.count(text))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.entered -= 1


def repeat(text: str, _nth: int) -> Answer:
    return Answer(text.upper(), "end_turn", "parrot-1", cost_usd=0.5)


def ask(teacher: Parrot, folder: Path, *texts: str, report: Callable[[Event], None] | None = None) -> Asked:
    asks = [(Prompt(text, text, text), Request(teacher.name, build_messages(text), 10)) for text in texts]
    seen = report or (lambda _event: None)
    return ask_all(teacher, asks, folder / "journal.jsonl", concurrency=3, report=seen, patience=PATIENCE)


def recording(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recorded(prompt: str, answer: str, system: str = "", **more: Any) -> dict[str, Any]:
    return {"messages": [m.to_json() for m in build_messages(prompt, system)], "answer": answer, **more}


# By name


@pytest.mark.parametrize("spec", ["", "claude-sonnet-4-6", "opneai:gpt", "anthropic:", "recorded: "])
def test_a_teacher_that_is_not_known_is_refused_with_how_to_write_one(spec: str) -> None:
    with pytest.raises(InputError) as raised:
        open_teacher(spec)
    assert repr(spec) in raised.value.message
    assert "anthropic:claude-sonnet-4-6" in raised.value.next_step


@pytest.mark.parametrize("spec", ["anthropic:claude-sonnet-4-6", "recorded:sample", "recorded:C:/x.jsonl"])
def test_a_teacher_is_called_what_the_user_called_it(spec: str) -> None:
    assert open_teacher(spec).name == spec


# Recorded


def collect(folder: Path, source: Path | str, *prompts: str, **settings: Any) -> dict[str, str]:
    """Answers by prompt, through the stage."""
    file = folder / "prompts.txt"
    file.write_text("\n".join(prompts))
    run(CollectConfig(out=folder / "out", teacher=f"recorded:{source}", prompts=file, **settings))
    lines = (folder / "out" / "teacher_data.jsonl").read_text().splitlines()
    return {record["messages"][-1]["content"]: record["answer"] for record in map(json.loads, lines)}


def test_a_recording_answers_under_any_system_prompt(tmp_path: Path) -> None:
    file = recording(tmp_path / "r.jsonl", recorded("Queue?", "A line.", system="Be old."))
    assert collect(tmp_path, file, "Queue?", system="Be new.") == {"Queue?": "A line."}


def test_a_complete_answer_wins_over_an_incomplete_one_and_a_later_over_an_earlier(tmp_path: Path) -> None:
    rows = [
        recorded("Queue?", "First."),
        recorded("Queue?", "Second."),
        recorded("Queue?", "Cut", stop_reason="max_tokens"),
        recorded("Stack?", "Cut", stop_reason="max_tokens"),
        recorded("Stack?", "Cut later", stop_reason="max_tokens"),
    ]
    answers = collect(tmp_path, recording(tmp_path / "r.jsonl", *rows), "Queue?", "Stack?")
    assert answers == {"Queue?": "Second.", "Stack?": "Cut later"}


def test_a_folder_stands_for_every_journal_in_it(tmp_path: Path) -> None:
    recording(tmp_path / "r" / "a.jsonl", recorded("A?", "A."))
    recording(tmp_path / "r" / "b.jsonl", recorded("B?", "B."))
    recording(tmp_path / "r" / "notes.txt", {"no": "journal"})
    assert collect(tmp_path, tmp_path / "r", "A?", "B?") == {"A?": "A.", "B?": "B."}


def test_a_replay_costs_nothing(tmp_path: Path) -> None:
    paid = recorded("A?", "A.", usage={"output_tokens": 9}, cost_usd=1.0, model="claude-sonnet-4-6")
    collect(tmp_path, recording(tmp_path / "r.jsonl", paid), "A?")
    record = json.loads((tmp_path / "out" / "teacher_data.jsonl").read_text())
    assert (record["cost_usd"], record["usage"]["output_tokens"]) == (None, 0)
    assert record["model"] == "claude-sonnet-4-6"


def test_what_a_recording_does_not_hold_is_named_and_the_rest_is_answered(tmp_path: Path) -> None:
    recording(tmp_path / "r.jsonl", recorded("A?", "A."))
    (tmp_path / "p.jsonl").write_text('{"id": "a", "prompt": "A?"}\n{"id": "b", "prompt": "B?"}\n')
    config = CollectConfig(
        out=tmp_path / "out", teacher=f"recorded:{tmp_path / 'r.jsonl'}", prompts=tmp_path / "p.jsonl"
    )
    result = run(config)
    assert (result.n_answered, [item.prompt_id for item in result.unanswered]) == (1, ["b"])
    assert "holds no answer to it" in result.unanswered[0].reason


def test_a_recording_that_answers_nothing_is_an_error(tmp_path: Path) -> None:
    file = recording(tmp_path / "r.jsonl", recorded("A?", "A."))
    with pytest.raises(TeacherError, match="answered none of the 2 prompts") as raised:
        collect(tmp_path, file, "B?", "C?")
    assert len(raised.value.problems) == 2
    assert not (tmp_path / "out" / "collect.json").exists()


@pytest.mark.parametrize(("name", "error"), [("none.jsonl", MissingError), ("empty", InputError)])
def test_a_recording_that_is_not_there_is_an_error(tmp_path: Path, name: str, error: type[Exception]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=name):
        collect(tmp_path, tmp_path / name, "A?")


def test_a_damaged_recording_names_its_lines(tmp_path: Path) -> None:
    file = recording(tmp_path / "r.jsonl", recorded("A?", "A."), {"answer": "?"}, {"messages": [], "answer": "?"})
    with pytest.raises(InputError) as raised:
        collect(tmp_path, file, "A?")
    assert [problem.split(" ")[0] for problem in raised.value.problems] == ["r.jsonl:2:", "r.jsonl:3:"]


def test_the_sample_answers_every_shipped_prompt(tmp_path: Path) -> None:
    config = CollectConfig(out=tmp_path, teacher="recorded:sample", prompts=shipped("prompts.jsonl"))
    result = run(config)
    assert (result.n_answered, result.n_prompts, result.unanswered) == (104, 104, ())
    assert result.stop_reasons == {"end_turn": 104}


# Asking


def test_equal_requests_are_asked_once(tmp_path: Path) -> None:
    parrot = Parrot(repeat)
    asked = ask(parrot, tmp_path, "a", "b", "a")
    assert sorted(parrot.asked) == ["a", "b"]
    assert [record.answer for record in asked.records().values()] == ["A", "B"]
    assert (asked.n_new, asked.cost_usd) == (2, 1.0)


def test_a_second_round_neither_enters_nor_asks_the_teacher(tmp_path: Path) -> None:
    ask(Parrot(repeat), tmp_path, "a", "b")
    parrot = Parrot(repeat)
    asked = ask(parrot, tmp_path, "b", "a")
    assert (parrot.asked, parrot.entered) == ([], 0)
    assert [record.prompt_id for record in asked.records().values()] == ["b", "a"]
    assert (asked.n_new, asked.cost_usd) == (0, 0.0)


def test_progress_begins_with_what_is_known_and_ends_with_everything_settled(tmp_path: Path) -> None:
    def script(text: str, nth: int) -> Answer:
        if text == "b":
            raise NoAnswerError("too hard")
        return repeat(text, nth)

    events: list[Event] = []
    ask(Parrot(repeat), tmp_path, "a")
    asked = ask(Parrot(script), tmp_path, "a", "b", "c", report=events.append)
    steps = [(event.done, event.total) for event in events if isinstance(event, Progress)]
    assert steps[0] == (1, 3)
    assert steps[-1] == (3, 3)
    assert {event.unit for event in events if isinstance(event, Progress)} == {"prompts"}  # those skipped among them
    assert [event.text for event in events if isinstance(event, Warning)] == ["b is skipped: too hard."]
    assert [item.reason for item in asked.unanswered] == ["too hard"]


def test_one_trouble_that_many_meet_is_said_once(tmp_path: Path) -> None:
    def script(text: str, nth: int) -> Answer:
        if nth < 3:
            raise TryLaterError("rate limit (429)", overloaded=True)
        return repeat(text, nth)

    events: list[Event] = []
    parrot = Parrot(script)
    assert len(ask(parrot, tmp_path, *"abcdef", report=events.append).records()) == 6
    assert set(Counter(parrot.asked).values()) == {3}
    assert len([event for event in events if isinstance(event, Warning)]) == 1


def test_a_bug_in_a_teacher_keeps_its_traceback_and_the_answers_before_it(tmp_path: Path) -> None:
    def script(text: str, nth: int) -> Answer:
        if text == "d":
            raise ZeroDivisionError
        return repeat(text, nth)

    parrot = Parrot(script)
    with pytest.raises(ZeroDivisionError):
        ask(parrot, tmp_path, *"abcdefgh")
    assert parrot.entered == 0
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) >= 3


def test_two_rounds_cannot_write_one_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl"), pytest.raises(InputError, match="another mlx-distill"):
        ask(Parrot(repeat), tmp_path, "a")


# Pacing


def test_waits_grow_twofold_to_the_longest_and_differ_from_each_other() -> None:
    patience = Patience(first_wait_seconds=1.0, longest_wait_seconds=60.0)
    for n_failures, middle in [(1, 1), (2, 2), (3, 4), (7, 60), (100, 60)]:
        waits = {patience.wait_seconds(n_failures, None) for _ in range(50)}
        assert all(0.75 * middle <= wait <= 1.25 * middle for wait in waits)
        assert len(waits) > 40


def test_a_wait_that_the_teacher_asks_for_is_never_shortened() -> None:
    waits = [Patience().wait_seconds(9, 30.0) for _ in range(50)]
    assert all(30.0 <= wait <= 31.0 for wait in waits)


def test_the_pace_is_halved_once_for_overloads_that_were_in_flight_together() -> None:
    async def at_once(n_overloaded: int, n_answered: int) -> int:
        pace = Pace(8)
        started = [await pace.turn() for _ in range(8)]
        for start in started[:n_overloaded]:
            pace.slow_down(start)
            pace.done()
        for _ in started[n_overloaded:]:
            pace.done()
        for _ in range(n_answered):
            pace.went_well()
        n = 0
        while True:
            try:
                await asyncio.wait_for(pace.turn(), 0.01)
            except TimeoutError:
                return n
            n += 1

    assert asyncio.run(at_once(0, 0)) == 8
    assert asyncio.run(at_once(8, 0)) == 4
    assert asyncio.run(at_once(8, 5)) == 5
    assert asyncio.run(at_once(8, 100)) == 8


# Prices


def usd(model: str, usage: Usage, prices: Prices = PRICES) -> float | None:
    """What an answer cost; None where the price is not known."""
    price = price_of(model, prices)
    cost = cost_of(price, usage) if price else None
    return cost.usd if cost else None


@pytest.mark.parametrize(
    ("model", "usage", "cost"),
    [
        ("claude-sonnet-4-6", Usage(1_000_000, 100_000), 4.5),
        ("claude-haiku-4-5-20251001", Usage(1000, 1000), 0.006),
        ("claude-sonnet-4-6", Usage(0, 0, 1_000_000, 1_000_000), 3 * 1.25 + 3 * 0.1),
        ("claude-haiku-5-5", Usage(100_000, 0), 0.01),
        ("claude-haiku-5-5", Usage(100_001, 0), None),
        ("claude-unheard-of", Usage(1, 1), None),
    ],
)
def test_cost_follows_the_table(model: str, usage: Usage, cost: float | None) -> None:
    assert usd(model, usage) == (None if cost is None else pytest.approx(cost))


def test_the_table_can_be_overridden() -> None:
    assert usd("mine", Usage(1_000_000, 0), {**PRICES, "mine": Price(7.0, 1.0)}) == 7.0


# Settings


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"concurrency": 1001}, "between 1 and 1000"),
        ({"wait_minutes": -1.0}, "wait_minutes is -1"),
        ({"wait_minutes": float("nan")}, "wait_minutes is nan"),
        ({"first_wait_seconds": 0.0}, "first_wait_seconds is 0"),
        ({"limit": 0}, "limit is 0"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, setting: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CollectConfig(out=tmp_path, teacher="recorded:sample", **setting)
