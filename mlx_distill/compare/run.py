"""`compare`: two models, one in memory at a time, on held-out rows and on prompts."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from msgspec.structs import replace

from mlx_distill import device
from mlx_distill.compare.answers import teacher_answers, write_answers
from mlx_distill.compare.config import TEST_PROMPTS, AnswerConfig, CompareConfig, CompareResult, PairConfig
from mlx_distill.compare.history import read_collected
from mlx_distill.compare.judge import judge
from mlx_distill.compare.metrics import METRICS, Metric
from mlx_distill.compare.models import Comparison, ModelLoader, ModelRun, model_info, model_specs
from mlx_distill.compare.prompts import EvalPrompt, build_prompts, read_prompts, sample_rows
from mlx_distill.compare.render.html import html_page
from mlx_distill.compare.render.markdown import markdown_page
from mlx_distill.compare.report import AnsweredPrompt, CheckedAnswer, Report
from mlx_distill.compare.rows import (
    check_same_tokens,
    check_unseen,
    find_warnings,
    read_rows,
    read_test_rows,
    render_rows,
    score_rows,
)
from mlx_distill.config import to_plain
from mlx_distill.events import Report as ReportEvent
from mlx_distill.events import Warning, ignore
from mlx_distill.models.load import Student
from mlx_distill.storage import files
from mlx_distill.storage.atomic import json_text, write_texts
from mlx_distill.storage.package_data import shipped


def run(
    config: CompareConfig | PairConfig, report: ReportEvent = ignore, metrics: Sequence[Metric] = METRICS
) -> CompareResult:
    """Compare two models and write `report.json`, `report.md` and `report.html`.

    Trouble with the teacher or the judge is a warning. Raises MissingError and InputError for files that are missing
    or do not fit together, VerificationError if a model's loss is not a number.
    """
    timer, loader = Timer(), ModelLoader()
    rows, specs = read_test_rows(config.data), model_specs(config)
    prompts = build_prompts(
        read_prompts(config.test_prompts), sample_rows(rows, config.test_rows, config.seed), config.system
    )
    infos, rendered = [], []
    with timer.measure("load"):  # load both models first, to find what does not fit before hours of work
        for spec in specs:
            student, adapter = loader.load(spec)
            infos.append(model_info(spec, student, adapter))
            rendered.append(render_rows(student, rows, config.data / files.TEST))
    check_same_tokens(rows, infos, rendered)
    warnings = find_warnings(infos, rows, config.system) + check_unseen(rows, config.data, infos)
    taught: dict[str, CheckedAnswer] = {}
    if config.teacher:
        with timer.measure("ask the teacher"):
            taught, missing = teacher_answers(student, prompts, config, report)
        warnings += missing
    for text in warnings:
        report(Warning(text))

    runs, written = [], []
    for spec, info, tokens in zip(specs, infos, rendered, strict=True):
        with timer.measure("load"):
            student, _ = loader.load(spec)
        with timer.measure(f"score {spec.name}"):
            scores = score_rows(student, tokens, info, report)
        with timer.measure(f"answers of {spec.name}"):
            texts, writing = write_answers(student, prompts, spec, config, report)
        runs.append(ModelRun(info, scores, writing))
        written.append(texts)
    data = Comparison(
        a=runs[0],
        b=runs[1],
        rows=rows,
        train_rows=read_rows(config.data / files.TRAIN),
        answers=[
            AnsweredPrompt(one.id, one.family, one.category, one.origin, one.text, a, b, taught.get(one.id))
            for one, a, b in zip(prompts, *written, strict=True)
        ],
        seed=config.seed,
    )
    if config.judge:
        with timer.measure("judge"):
            data, doubts = judge_answers(data, prompts, config, report)
        warnings += doubts
    with timer.measure("metrics"):
        tables = [table for metric in metrics if (table := metric(data))]
    is_default = config.test_prompts == shipped(TEST_PROMPTS)  # wherever it is on this machine
    found = Report(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(student),
        versions=device.versions(),
        a=data.a.info,
        b=data.b.info,
        teacher=config.teacher,
        collected=read_collected(config.data),
        settings=to_plain(config) | ({"test_prompts": None} if is_default else {}),
        tables={table.id: table for table in tables},
        findings=tuple(table.finding for table in tables if table.finding),
        warnings=tuple(warnings),
        answers=tuple(data.answers),
        seconds=timer.seconds,
    )
    return write_report(found, config)


def judge_answers(
    data: Comparison, prompts: Sequence[EvalPrompt], config: AnswerConfig, report: ReportEvent
) -> tuple[Comparison, list[str]]:
    """Have the answers judged; return the comparison with the judgements, and warnings."""
    collected = read_collected(config.data)
    learned_from = [config.teacher, *((*collected.teachers, *collected.models) if collected else ())]
    learned_from += [one.teacher.model for one in data.answers if one.teacher]
    judging, warnings = judge(prompts, [(one.a, one.b) for one in data.answers], config, learned_from, report)
    for text in warnings:
        report(Warning(text))
    if not judging:
        return data, warnings
    answers = [
        replace(one, verdict=pair.describe(data.a.name, data.b.name), judge_replies=pair.replies)
        for one, pair in zip(data.answers, judging.pairs, strict=True)
    ]
    return replace(data, answers=answers, judging=judging), warnings


def describe_machine(student: Student) -> dict[str, str]:
    """Return where the comparison ran, and the type in which the models computed."""
    hardware = device.prepare()
    return {
        "platform": platform.platform(),
        "device": hardware.name,
        "kind": hardware.kind,
        "blas": hardware.blas.name if hardware.blas else "",
        "dtype": str(student.dtype).removeprefix("mlx.core."),
    }


def write_report(found: Report, config: AnswerConfig) -> CompareResult:
    """Write the three files together, so that a failure leaves an earlier report as it was."""
    json_file, markdown_file, html_file = config.outputs()
    write_texts(
        {html_file: html_page(found), markdown_file: markdown_page(found), json_file: json_text(to_plain(found))}
    )
    return CompareResult(found, json_file, markdown_file, html_file, round(sum(found.seconds.values()), 2))


class Timer:
    """Seconds of each part of the work, summed over its turns."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] = round(self.seconds.get(part, 0.0) + time.perf_counter() - started, 3)
