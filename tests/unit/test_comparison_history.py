"""What earlier stages left behind is read where it belongs to the comparison, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

from mlx_distill.compare.answer_figures import answer_figures
from mlx_distill.compare.answers import PromptAnswers, StudentAnswer, Writing
from mlx_distill.compare.code import examine
from mlx_distill.compare.figures import PairedRow, held_out
from mlx_distill.compare.history import Course, History, Moment, read_course, read_history
from mlx_distill.compare.observations import observe
from mlx_distill.compare.subject_wording import clock, cost
from mlx_distill.compare.vocabulary import vocabulary
from mlx_distill.models.score import RowScore
from tests.support.comparing import write_lines
from tests.support.reports import make_sides


def read(folder: Path) -> History:
    folders = {name: folder / name for name in ("model", "adapter", "data")}
    return read_history(folder / "data", folder / "out" / "manifests", folders)


def test_nothing_is_known_of_empty_folders(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert (found.collected, found.stages) == (None, ())
    assert read_course(tmp_path) is None


def test_answers_are_counted_by_the_index_and_priced_by_the_journal(tmp_path: Path) -> None:
    data = tmp_path / "data"
    journal = [
        {"key": "a", "teacher": "anthropic:x", "model": "x-1", "cost_usd": 0.5},
        {"key": "b", "teacher": "anthropic:x", "model": "x-1", "cost_usd": None},
        {"key": "of other prompts", "model": "y", "cost_usd": 9.0},
    ]
    write_lines(data / "teacher_data.jsonl", journal)
    (data / "collect.json").write_text(json.dumps({"answers": [{"key": key} for key in "abc"]}))
    found = read(tmp_path).collected
    assert found
    assert (found.n_prompts, found.n_answered, found.models, found.cost_usd, found.n_priced) == (3, 2, ("x-1",), 0.5, 1)
    assert cost(found) == "0.50 USD for 1 of them; the others have no price recorded"


def test_the_course_of_training_survives_broken_lines(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(
        '{"step": 0, "valid_loss": 2.0, "valid_accuracy": 0.5}\n{"step": 1, "train_loss": NaN}\n{broken\n[1]\n'
        '{"step": 2, "train_loss": 1.5, "train_accuracy": "high"}\n'
    )
    found = read_course(folder)
    assert found
    assert found.moments == (
        Moment(0, None, 2.0, None, 0.5),
        Moment(1, None, None, None, None),
        Moment(2, 1.5, None, None, None),
    )


def test_only_stages_of_the_folders_compared_have_a_time(tmp_path: Path) -> None:
    manifests = tmp_path / "out" / "manifests"
    manifests.mkdir(parents=True)
    for stage, setting, folder in (("train", "adapter", tmp_path / "adapter"), ("prepare", "data", "elsewhere")):
        record = {"settings": {setting: str(folder)}, "seconds": 12.0, "finished_at": "now"}
        (manifests / f"{stage}.json").write_text(json.dumps(record))
    assert [(one.stage, one.seconds) for one in read(tmp_path).stages] == [("train", 12.0)]


def told(losses: list[tuple[float, float]]) -> str:
    """The observations of rows with these losses of base and distilled, each in a family of its own."""
    rows = [
        PairedRow(
            f"f{number}",
            "sql" if number % 2 else "python",
            RowScore(10 * base, 4, 10),
            RowScore(10 * after, 5, 10),
        )
        for number, (base, after) in enumerate(losses)
    ]
    plain, hinted = ("```python\ndef f()" + hint + ":\n    return 1\n```" for hint in ("", " -> int"))
    given = [
        PromptAnswers("p", "c", "?", StudentAnswer(plain, False, 9, 9.0), StudentAnswer(hinted, True, 9, 9.0), None)
    ]
    course = Course({"epochs": 3}, {"stopped": "time budget", "epochs": 0.5, "steps": 9}, ())
    sides = make_sides(course)
    writing = dict.fromkeys(("base", "distilled"), Writing(18, 1.0, 18.0, 10**9))
    figures = answer_figures(given, writing, seed=0)
    return "\n".join(observe(held_out(rows, 0), figures, examine(given), vocabulary((), given), None, sides))


def test_observations_say_no_more_than_the_figures() -> None:
    sure = told([(2.0, 1.5 + number / 100) for number in range(12)])
    assert "fell from 2.000 to" in sure
    assert "excludes zero" in sure
    assert "By category, loss fell most in python" in sure
    assert "Of 1 answer each, 0 of base and 1 of distilled came to an end before the limit; they are 9 and 9" in sure
    assert "Type hints in code that parses: base 0 of 1, distilled 1 of 1." in sure
    assert "after 0.5 of 3 epochs (9 steps)" in sure
    unsure = told([(2.0, 2.0 + (-1) ** number * 0.5 - 0.01) for number in range(12)])
    assert "includes zero, so it may be chance" in unsure
    assert "too few to say" in told([(2.0, 1.0), (2.0, 1.1)])
    assert "rose from" in told([(2.0, 2.5)] * 9)
    assert "is the same for base and distilled" in told([(2.0, 2.0)] * 9)


def test_times_are_told_as_people_tell_them() -> None:
    assert [clock(seconds) for seconds in (0.08, 7, 145, 4000)] == ["0.1 s", "7 s", "2 min 25 s", "1 h 06 min"]
