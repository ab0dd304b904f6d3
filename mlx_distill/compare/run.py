"""`compare`: two sides, one model in memory at a time, on held-out rows and on test prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_distill import device
from mlx_distill.compare.config import CompareConfig, PairConfig
from mlx_distill.config import to_plain
from mlx_distill.events import Report, Warning, ignore
from mlx_distill.storage.atomic import json_text, write_texts

if TYPE_CHECKING:
    from mlx_distill.compare.answer_figures import AnswerFigures
    from mlx_distill.compare.answers import PromptAnswers
    from mlx_distill.compare.code import CodeFindings
    from mlx_distill.compare.figures import HeldOut
    from mlx_distill.compare.judge import Judged
    from mlx_distill.compare.vocabulary import Vocabulary


@dataclass(frozen=True)
class CompareResult:
    """What was found, and where it is written down."""

    names: dict[str, str]
    """What `base`, `distilled` and `teacher` are called: two folders' names where two of them are compared."""
    adapters: tuple[str, ...]
    """The folder of each adapter that was compared, and which moment of training it is."""
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


def run(config: CompareConfig | PairConfig, report: Report = ignore) -> CompareResult:
    """Compare, write `report.json`, `report.md` and `report.html`, and return the findings.

    A teacher that cannot be asked is a caution. Raises MissingError and InputError for what is not there or does not
    fit together, VerificationError where a model's loss is not a number.
    """
    device.prepare()
    from mlx_distill.compare import answer_figures, answers, code, history, html, markdown, measuring, observations
    from mlx_distill.compare import judge as judging
    from mlx_distill.compare import questions as asking
    from mlx_distill.compare import report as reports
    from mlx_distill.compare import sides as both
    from mlx_distill.compare import vocabulary as vocabularies

    parts, seats = _Parts(), both.Seats()
    rows, prompts = measuring.read_rows(config.data), asking.read_prompts(config.test_prompts)
    sampled = asking.sample_rows(rows, config.test_rows, config.seed)
    questions = asking.questions_of(prompts, sampled, config.system)
    sides, facts, rendered = both.sides_of(config), {}, {}
    with parts.timed("load"):  # both, so that what does not fit is known before hours of work
        for key, side in sides.items():
            student, adapter = seats.take(side)
            facts[key] = both.side_facts(side, student, adapter)
            rendered[key] = measuring.render_rows(student, rows, config.data / measuring.TEST_FILE)
    measuring.refuse_other_tokens(rows, list(sides.values()), list(rendered.values()))
    cautions = reports.cautions(facts.values(), rows, config.system)
    cautions += measuring.refuse_seen_rows(rows, config.data, facts.values())
    taught: dict[str, answers.TeacherAnswer] = {}
    if config.teacher:
        with parts.timed("ask the teacher"):
            taught, missing = answers.ask_teacher(questions, config, report)
        cautions += missing
    for text in cautions:
        report(Warning(text))

    scores, written, writing = {}, {}, {}
    for key, side in sides.items():
        with parts.timed("load"):
            student, _ = seats.take(side)
        with parts.timed(f"score {side.name}"):
            scores[key] = measuring.score_side(student, rendered[key], side, report)
        with parts.timed(f"answers of {side.name}"):
            written[key], writing[key] = answers.write_answers(student, questions, side, config, report)

    test = measuring.pair(rows, scores["base"], scores["distilled"], config.seed)
    given = answers.put_together(student, questions, written["base"], written["distilled"], taught)
    folders = {"model": sides["distilled"].model, "adapter": sides["distilled"].adapter, "data": config.data}
    past = history.read_history(config.data, config.out / "manifests", folders)
    with parts.timed("look at the answers"):
        checked = code.examine(given, execute=config.execute)
        words = vocabularies.vocabulary(measuring.training_rows(config.data), given)
        of_answers = answer_figures.answer_figures(given, writing, config.seed)
    judged = None
    if config.judge:
        with parts.timed("judge"):
            taught_by = judging.teachers_of(config.teacher, past.collected, given)
            judged, doubts = judging.judge(given, config, taught_by, report)
        cautions += doubts
    names = both.names_of(sides)
    found = reports.Report(
        schema_version=reports.SCHEMA_VERSION,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=reports.machine_facts(student),
        versions=device.versions(),
        sides=facts,
        teacher=config.teacher or None,
        history=past,
        settings=reports.settings_of(config),
        definitions=reports.definitions(names),
        test=test,
        answers=given,
        answer_figures=of_answers,
        judged=judged,
        code=checked,
        vocabulary=words,
        observations=observations.observe(test, of_answers, checked, words, judged, facts),
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
        names,
        tuple(each.adapter.origin for each in facts.values() if each.adapter),
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
    """How long each part of the work took, all its turns together."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)
