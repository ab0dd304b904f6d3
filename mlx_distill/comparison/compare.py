"""`compare`: one copy of the student, its adapter off and on, on held-out rows and on test prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_distill import machine
from mlx_distill.comparison.config import CompareConfig
from mlx_distill.events import Caution, Report, ignore
from mlx_distill.settings import to_plain
from mlx_distill.storage.durable import json_text, write_texts

if TYPE_CHECKING:
    from mlx_distill.comparison.answer_figures import AnswerFigures
    from mlx_distill.comparison.answers import PromptAnswers
    from mlx_distill.comparison.code import CodeFindings
    from mlx_distill.comparison.figures import HeldOut
    from mlx_distill.comparison.judge import Judged
    from mlx_distill.comparison.vocabulary import Vocabulary


@dataclass(frozen=True)
class CompareResult:
    """What was found, and where it is written down."""

    test: HeldOut
    answers: tuple[PromptAnswers, ...]
    answer_figures: AnswerFigures
    judged: Judged | None
    """None where nobody judged."""
    code: CodeFindings
    vocabulary: Vocabulary
    cautions: tuple[str, ...]
    observations: tuple[str, ...]
    report: Path
    markdown: Path
    page: Path
    seconds: float


def run(config: CompareConfig, report: Report = ignore) -> CompareResult:
    """Compare, write `report.json`, `report.md` and `report.html`, and return the findings.

    A teacher that cannot be asked is a caution. Raises MissingError and InputError for what is not there or does not
    fit together, VerificationError where a model's loss is not a number.
    """
    machine.prepare()
    from mlx_distill.comparison import answer_figures, answers, code, history, html, markdown, measuring, observations
    from mlx_distill.comparison import judge as judging
    from mlx_distill.comparison import questions as asking
    from mlx_distill.comparison import report as reports
    from mlx_distill.comparison import vocabulary as vocabularies
    from mlx_distill.students.adapter import attach
    from mlx_distill.students.loading import load_student

    parts = _Parts()
    rows, prompts = measuring.read_rows(config.data), asking.read_prompts(config.test_prompts)
    sampled = asking.sample_rows(rows, config.test_rows, config.seed)
    questions = asking.questions_of(prompts, sampled, config.system)
    with parts.timed("load"):
        student = load_student(config.model)
        model = reports.student_facts(student)
        adapter = attach(student, config.adapter)
        learnt = reports.adapter_facts(adapter)
        rendered = measuring.render_rows(student, rows, config.data / measuring.TEST_FILE)
    cautions = reports.cautions(model, learnt, rows, config.system)
    taught: dict[str, answers.TeacherAnswer] = {}
    if config.teacher:
        with parts.timed("ask the teacher"):
            taught, missing = answers.ask_teacher(questions, config, report)
        cautions += missing
    for text in cautions:
        report(Caution(text))

    scores, written, writing = {}, {}, {}
    for name in ("base", "distilled"):
        adapter.enabled = name == "distilled"
        with parts.timed(f"score {name}"):
            scores[name] = measuring.score_student(student, rendered, adapter, report)
        with parts.timed(f"answers of {name}"):
            written[name], writing[name] = answers.write_answers(student, questions, name, config, report)

    test = measuring.pair(rows, scores["base"], scores["distilled"], config.seed)
    given = answers.put_together(student, questions, written["base"], written["distilled"], taught)
    past = history.read_history(config.model, config.adapter, config.data, config.out)
    with parts.timed("look at the answers"):
        checked = code.examine(given)
        words = vocabularies.vocabulary(measuring.training_rows(config.data), given)
        of_answers = answer_figures.answer_figures(given, writing, config.seed)
    judged = None
    if config.judge:
        with parts.timed("judge"):
            taught_by = judging.teachers_of(config.teacher, past.collected, given)
            judged, doubts = judging.judge(given, config, taught_by, report)
        cautions += doubts
    found = reports.Report(
        schema_version=reports.SCHEMA_VERSION,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=reports.machine_facts(student),
        versions=machine.versions(),
        model=model,
        adapter=learnt,
        teacher=config.teacher or None,
        history=past,
        settings=to_plain(config),
        definitions=reports.DEFINITIONS,
        test=test,
        answers=given,
        answer_figures=of_answers,
        judged=judged,
        code=checked,
        vocabulary=words,
        observations=observations.observe(test, of_answers, checked, words, judged, past.course),
        cautions=tuple(cautions),
        seconds=parts.seconds,
    )
    files = {
        "report.html": html.page(found),
        "report.md": markdown.page(found),
        "report.json": json_text(to_plain(found)),
    }
    write_texts({config.out / name: text for name, text in files.items()})
    return CompareResult(
        test,
        found.answers,
        found.answer_figures,
        found.judged,
        found.code,
        found.vocabulary,
        found.cautions,
        found.observations,
        config.out / "report.json",
        config.out / "report.md",
        config.out / "report.html",
        round(sum(parts.seconds.values()), 2),
    )


class _Parts:
    """How long each part of the work took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)
