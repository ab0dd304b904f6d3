"""`compare`: two models, one in memory at a time, on held-out rows and on prompts."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import mlx.core as mx

from mlx_distill import device
from mlx_distill.compare.answers import generate_answers, teacher_answers
from mlx_distill.compare.collected import Collected, read_collected
from mlx_distill.compare.config import TEST_PROMPTS, AnswerConfig, CompareConfig, CompareResult, PairConfig
from mlx_distill.compare.fidelity import open_reference
from mlx_distill.compare.judge import judge
from mlx_distill.compare.metrics import METRICS, Metric
from mlx_distill.compare.models import Comparison, ModelLoader, ModelRun, model_info, model_specs
from mlx_distill.compare.prompts import build_prompts, read_prompts, sample_rows
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
from mlx_distill.storage.package_data import package_data_path


def run(
    config: CompareConfig | PairConfig, report: ReportEvent = ignore, metrics: Sequence[Metric] = METRICS
) -> CompareResult:
    """Compare two models and write `report.json`, `report.md` and `report.html`.

    Trouble with the teacher or the judge is a warning. Raises MissingError and InputError for files that are missing
    or do not fit together, VerificationError if a model's loss is not a number.
    """
    started, loader, warnings = time.perf_counter(), ModelLoader(), list[str]()

    def warn(texts: Iterable[str]) -> None:
        for text in texts:
            warnings.append(text)
            report(Warning(text))

    rows, specs = read_test_rows(config.data), model_specs(config)
    sampled = sample_rows(rows, config.test_rows, config.seed)
    prompts = build_prompts(read_prompts(config.test_prompts), sampled, config.system)
    infos, rendered = [], []
    for spec in specs:  # load both models first, to find what does not fit before hours of work
        student, adapter = loader.load(spec)
        infos.append(model_info(spec, student, adapter))
        rendered.append(render_rows(student, rows, config.data / files.TEST))
    check_same_tokens(rows, infos, rendered)
    warn([*find_warnings(infos, rows, config.system), *check_unseen(rows, config.data, infos)])
    by_teacher: dict[str, CheckedAnswer] = {}
    if config.teacher:
        by_teacher, missing = teacher_answers(student, prompts, config, report)
        warn(missing)
    student, _ = loader.load(specs[0])
    reference, doubts = open_reference(config, specs, student, rows, rendered[0], report)
    warn(doubts)

    runs, by_model = [], []
    for spec, info, tokens in zip(specs, infos, rendered, strict=True):
        student, _ = loader.load(spec)
        scores = score_rows(student, tokens, info, report)
        fidelity = reference.measure(student, tokens, spec.name, report) if reference else None
        mx.reset_peak_memory()
        generated, tokens_per_second = generate_answers(student, prompts, spec, config, report)
        runs.append(ModelRun(info, scores, tokens_per_second, mx.get_peak_memory(), fidelity))
        by_model.append(generated)
    reference = None  # the judge may need the memory
    answers = [
        AnsweredPrompt(one.id, one.family, one.category, one.origin, one.text, a, b, by_teacher.get(one.id))
        for one, a, b in zip(prompts, *by_model, strict=True)
    ]
    collected, judge_info = read_collected(config.data), None
    if config.judge:
        known = (*collected.teachers, *collected.models) if collected else ()
        learned_from = [config.teacher, *known, *(answer.model for answer in by_teacher.values())]
        answers, judge_info, doubts = judge(answers, config, learned_from, report)
        warn(doubts)
    data = Comparison(
        a=runs[0],
        b=runs[1],
        rows=rows,
        train_rows=read_rows(config.data / files.TRAIN),
        answers=answers,
        judge=judge_info,
        seed=config.seed,
        teacher=config.teacher,
    )
    found = build_report(data, config, metrics, collected, warnings, describe_machine(student), started)
    return write_report(found, config)


def build_report(
    data: Comparison,
    config: AnswerConfig,
    metrics: Sequence[Metric],
    collected: Collected | None,
    warnings: Sequence[str],
    machine: dict[str, str],
    started: float,
) -> Report:
    """Compute the metrics and put them into a report."""
    tables = [table for metric in metrics if (table := metric(data))]
    is_default = config.test_prompts == package_data_path(TEST_PROMPTS)  # wherever it is on this machine
    return Report(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine,
        versions=device.versions(),
        a=data.a.info,
        b=data.b.info,
        teacher=config.teacher,
        collected=collected,
        settings=to_plain(config) | ({"test_prompts": None} if is_default else {}),
        tables={table.id: table for table in tables},
        findings=tuple(table.finding for table in tables if table.finding),
        warnings=tuple(warnings),
        answers=tuple(data.answers),
        seconds=round(time.perf_counter() - started, 2),
    )


def write_report(found: Report, config: AnswerConfig) -> CompareResult:
    """Write the three files together, so that a failure leaves an earlier report as it was."""
    json_file, markdown_file, html_file = config.outputs()
    write_texts(
        {html_file: html_page(found), markdown_file: markdown_page(found), json_file: json_text(to_plain(found))}
    )
    return CompareResult(found, json_file, markdown_file, html_file)


def describe_machine(student: Student) -> dict[str, str]:
    """Return the machine, and the type in which the models compute."""
    hardware = device.prepare()
    return {
        "platform": platform.platform(),
        "device": hardware.name,
        "kind": hardware.kind,
        "blas": hardware.blas.name if hardware.blas else "",
        "dtype": str(student.dtype).removeprefix("mlx.core."),
    }
