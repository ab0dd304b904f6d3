"""Asking a scripted teacher: what is saved, asked again, reported, retried and estimated."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from mlx_distill.errors import TeacherError
from mlx_distill.events import Event, Progress, Warning
from mlx_distill.records import Answer
from mlx_distill.storage.journal import Journal
from mlx_distill.teachers.ask import AskResult, ask
from mlx_distill.teachers.base import PromptError, RetryableError
from mlx_distill.teachers.estimate import estimate
from mlx_distill.teachers.retry import RetryPolicy
from tests.support.teachers import Parrot, VirtualTimeLoop, ask_parrot, requests_of, shout

MINUTE = RetryPolicy(limit_seconds=60.0, first_wait_seconds=1.0)


def texts(result: AskResult) -> dict[str, str]:
    return {record.prompt_id: record.answer for record in result.records() if record}


def test_equal_requests_are_sent_once(tmp_path: Path) -> None:
    parrot = Parrot(shout)
    result = ask_parrot(parrot, tmp_path, "a", "b", "a")
    assert sorted(parrot.asked) == ["a", "b"]
    assert texts(result) == {"a": "A", "b": "B"}
    assert (result.n_new, result.cost_usd) == (2, 1.0)


def test_second_run_does_not_enter_the_teacher(tmp_path: Path) -> None:
    ask_parrot(Parrot(shout), tmp_path, "a", "b")
    parrot = Parrot(shout)
    result = ask_parrot(parrot, tmp_path, "b", "a")
    assert (parrot.asked, parrot.entered, list(texts(result))) == ([], 0, ["b", "a"])
    assert (result.n_new, result.cost_usd) == (0, 0.0)


def test_progress_counts_known_and_skipped_prompts(tmp_path: Path) -> None:
    def script(text: str, nth: int) -> Answer:
        if text == "b":
            raise PromptError("too hard")
        return shout(text, nth)

    events: list[Event] = []
    ask_parrot(Parrot(shout), tmp_path, "a")
    result = ask_parrot(Parrot(script), tmp_path, "a", "b", "c", report=events.append)
    steps = [(event.done, event.total) for event in events if isinstance(event, Progress)]
    assert (steps[0], steps[-1]) == ((1, 3), (3, 3))
    assert [event.text for event in events if isinstance(event, Warning)] == ["b is skipped: too hard."]
    assert [item.reason for item in result.failed] == ["too hard"]


def test_failure_of_many_requests_is_reported_once(tmp_path: Path) -> None:
    def script(text: str, nth: int) -> Answer:
        if nth < 3:
            raise RetryableError("rate limit (429)", overloaded=True)
        return shout(text, nth)

    events: list[Event] = []
    parrot = Parrot(script)
    assert len(texts(ask_parrot(parrot, tmp_path, *"abcdef", report=events.append))) == 6
    assert set(Counter(parrot.asked).values()) == {3}
    assert len([event for event in events if isinstance(event, Warning)]) == 1


def test_bug_in_a_teacher_keeps_its_traceback(tmp_path: Path) -> None:
    def script(text: str, nth: int) -> Answer:
        if text == "d":
            raise ZeroDivisionError
        return shout(text, nth)

    parrot = Parrot(script)
    with pytest.raises(ZeroDivisionError):
        ask_parrot(parrot, tmp_path, *"abcdefgh")
    assert parrot.entered == 0
    assert len((tmp_path / "teacher_data.jsonl").read_text().splitlines()) >= 3
    with Journal(tmp_path / "teacher_data.jsonl"):
        """The lock is free again."""


# Retries, in virtual time


def outage(parrot_down_for: int, *, retry_after: float | None = None, overloaded: bool = False) -> Parrot:
    """Return a teacher whose first so many requests fail."""

    def script(text: str, nth: int) -> Answer:
        if len(parrot.asked) <= parrot_down_for:
            raise RetryableError("down", retry_after=retry_after, overloaded=overloaded)
        return shout(text, nth)

    parrot = Parrot(script)
    return parrot


def test_retry_after_overrides_patience(tmp_path: Path) -> None:
    parrot = outage(1, retry_after=3600.0, overloaded=True)
    assert ask_parrot(parrot, tmp_path, "a", policy=MINUTE).n_new == 1
    assert 3600.0 <= parrot.times[1] < 3602.0


def test_wait_of_more_than_a_day_stops_the_run(tmp_path: Path) -> None:
    parrot = outage(1, retry_after=90_000.0)
    with pytest.raises(TeacherError, match="asks to wait 25 h"):
        ask_parrot(parrot, tmp_path, "a", policy=MINUTE)
    assert len(parrot.asked) == 1


def test_outage_stops_the_run_after_the_limit(tmp_path: Path) -> None:
    parrot = outage(10**6)
    with pytest.raises(TeacherError, match="has not answered for 1 min: down") as raised:
        ask_parrot(parrot, tmp_path, *map(str, range(60)), policy=MINUTE)
    assert "--wait-minutes" in raised.value.next_step
    assert 60.0 <= parrot.times[-1] < 62.0
    assert len(parrot.asked) < 20  # after the first failures one at a time


def test_prompt_that_keeps_failing_is_skipped(tmp_path: Path) -> None:
    def script(text: str, nth: int) -> Answer:
        if text == "a":
            raise RetryableError("cannot")
        return shout(text, nth)

    parrot = Parrot(script, seconds=1.0)
    result = ask_parrot(parrot, tmp_path, "a", *(f"b{number}" for number in range(400)), policy=MINUTE)
    assert [(item.prompt_id, item.reason) for item in result.failed] == [
        ("a", "failed for 1 min while others were answered: cannot")
    ]
    assert result.n_new == 400


def test_silence_is_reported_with_what_is_in_flight(tmp_path: Path) -> None:
    events: list[Event] = []
    ask_parrot(Parrot(shout, seconds=60.0), tmp_path, "a", "b", report=events.append)
    notes = [event.note for event in events if isinstance(event, Progress)]
    assert any("2 in flight, no answer for 25 s" in note for note in notes)


# What the journal answers


def test_truncated_answer_is_replaced_by_its_retry(tmp_path: Path) -> None:
    def script(text: str, nth: int) -> Answer:
        if text == "ü" and nth == 1:
            return Answer("cut", "max_tokens", "parrot-1")
        return Answer("", "refusal", "parrot-1", detail="category") if text == "c" else shout(text, nth)

    parrot = Parrot(script)
    parrot.max_retry_tokens = 1000
    result = ask_parrot(parrot, tmp_path, "a", "ü", "c", "ü")
    assert (result.n_new, texts(result)) == (3, {"a": "A", "ü": "Ü", "c": ""})
    assert [answer and answer.max_tokens for answer in result.answers] == [10, 20, 10, 20]
    with (tmp_path / "teacher_data.jsonl").open("a") as journal:
        journal.write('{"messages": [{"role": "user", "content": "ü')
    later = ask_parrot(Parrot(script), tmp_path, "d", "c", "ü", "a")
    assert texts(later) == {"d": "D", "c": "", "ü": "Ü", "a": "A"}
    assert set(result.answers) <= set(later.answers)


def test_last_complete_answer_counts(tmp_path: Path) -> None:
    lines = [("end_turn", "first"), ("end_turn", "second"), ("max_tokens", "cut")]
    message = {"messages": [{"role": "user", "content": "a"}], "teacher": "parrot", "max_tokens": 10}
    (tmp_path / "teacher_data.jsonl").write_text(
        "".join(json.dumps({**message, "answer": text, "stop_reason": why}) + "\n\n" for why, text in lines)
    )
    parrot = Parrot(shout)
    assert list(texts(ask_parrot(parrot, tmp_path, "a")).values()) == ["second"]
    assert parrot.asked == []


def test_estimate_ignores_a_line_that_is_being_written(tmp_path: Path) -> None:
    parrot = Parrot(shout)
    ask_parrot(parrot, tmp_path, "a", "b")
    journal = tmp_path / "teacher_data.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    assert estimate(parrot, requests_of(parrot, "a", "b"), journal).n_to_ask == 1


def test_answers_are_not_held_in_memory(tmp_path: Path) -> None:
    def peak_bytes(n_letters: int) -> int:
        parrot = Parrot(lambda _text, _nth: Answer("x" * n_letters, "end_turn", "parrot-1"))
        requests = requests_of(parrot, *(f"p{number}" for number in range(500)))
        tracemalloc.start()
        try:
            journal = tmp_path / str(n_letters) / "teacher_data.jsonl"
            assert ask(parrot, requests, journal, concurrency=3, loop_factory=VirtualTimeLoop).n_new == 500
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_bytes(40_000) - peak_bytes(10) < 1_000_000  # the answers have 20 MB
