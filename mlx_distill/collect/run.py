"""Prompts to teacher records: ask the teacher for the answers that are missing.

Writes `teacher_data.jsonl`, one line an answer, never rewritten, and `collect.json`, which lists the answers of this
prompt set and these settings: the journal may contain others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from msgspec import structs

from mlx_distill.collect.config import CollectConfig, CollectResult
from mlx_distill.collect.prompts import read_prompts
from mlx_distill.errors import Interrupted, TeacherError
from mlx_distill.events import Report, Warning, ignore
from mlx_distill.models.config import is_local
from mlx_distill.models.context import read_context, request_with_context
from mlx_distill.storage import files
from mlx_distill.storage.atomic import write_json_lists
from mlx_distill.teachers import ask, open_teacher
from mlx_distill.teachers import estimate as estimates
from mlx_distill.teachers.ask import AskResult
from mlx_distill.teachers.estimate import Estimate
from mlx_distill.teachers.pending import FailedPrompt, Requests


def run(config: CollectConfig, report: Report = ignore) -> CollectResult:
    """Ask the teacher for the answers that are missing.

    A prompt that cannot be answered is skipped and listed in the result and in collect.json. Raises InputError for
    problems of the prompt file, TeacherError if the teacher cannot be asked or answers nothing, BudgetError at the cap,
    and Interrupted after Ctrl-C or SIGTERM: every answer that arrived is saved, and another run asks for the rest.
    """
    teacher = open_teacher(config.teacher, config.model)
    requests = _requests(teacher.name, config)
    result = ask.ask(
        teacher,
        requests,
        config.out / files.TEACHER_DATA,
        concurrency=config.concurrency,
        budget=config.budget,
        retry=config.retry,
        batch_mode=config.batch_mode,
        report=report,
        policy=config.policy,
        job="collect",
    )
    # A teacher that could not be asked at all leaves the index of an earlier run as it is.
    if any(result.answers) or isinstance(result.stopped_by, Interrupted):
        _write_index(config.out / files.PROMPT_INDEX, requests, result)
    result.raise_if_stopped()
    if result.failed and not any(result.answers) and not result.n_in_batches:
        raise TeacherError(
            f"{teacher.name} answered none of the {len(requests)} prompts.",
            "Choose another teacher or other prompts.",
            failed_lines(result.failed),
        )
    _warn_of_incomplete(requests, result, report)
    return _summarise(config, result)


def estimate(config: CollectConfig) -> Estimate:
    """Return what `run` would ask and its cost. Sends and writes nothing."""
    teacher = open_teacher(config.teacher, config.model)
    return estimates.estimate(
        teacher,
        _requests(teacher.name, config),
        config.out / files.TEACHER_DATA,
        budget=config.budget,
        retry=config.retry,
        batch_mode=config.batch_mode,
    )


def failed_lines(failed: Sequence[FailedPrompt], max_lines: int = 10) -> list[str]:
    """Return one line a prompt without an answer, for the problems of an error."""
    lines = [f"{item.prompt_id}: {item.reason}" for item in failed[:max_lines]]
    return lines if len(failed) <= max_lines else [*lines, f"... and {len(failed) - max_lines} more"]


def _requests(teacher: str, config: CollectConfig) -> Requests:
    """Return the requests: all first samples, then all second ones. They share the messages: there may be 100,000."""
    context, prompts = read_context(config.teacher_context), read_prompts(config.prompts)[: config.limit]
    temperature = config.temperature if is_local(config.teacher) else 0.0
    seed = config.seed if temperature else 0
    asked = [(prompt, request_with_context(teacher, prompt, context, config.max_tokens)) for prompt in prompts]
    return [
        (
            structs.replace(prompt, id=f"{prompt.id}-s{sample + 1}") if sample else prompt,
            structs.replace(request, temperature=temperature, seed=seed, sample=sample),
        )
        for sample in range(config.samples)
        for prompt, request in asked
    ]


def _write_index(path: Path, requests: Requests, result: AskResult) -> None:
    """Write the record's key of each prompt in order, answered or not, and why some have no answer."""
    answers = (
        {
            "key": answer.key if answer else request.key,
            **{name: getattr(prompt, name) for name in ("id", "family", "category", "split")},
        }
        for (prompt, request), answer in zip(requests, result.answers, strict=True)
    )
    write_json_lists(path, {"answers": answers, "unanswered": map(asdict, result.failed)})


def _warn_of_incomplete(requests: Requests, result: AskResult, report: Report) -> None:
    """Name the answers that were refused, empty or truncated. They are asked again only on request."""
    prompts = {answer: prompt.id for (prompt, _), answer in zip(requests, result.answers, strict=True) if answer}
    for status, words in (("refusal", "refused"), ("empty", "empty"), ("max_tokens", "truncated at max_tokens")):
        found = [answer for answer in prompts if answer.status == status]
        if found:
            details = sorted({answer.detail for answer in found if answer.detail})[:3]
            why = f" ({'; '.join(details)})" if details else ""
            names = ", ".join(prompts[answer] for answer in found[:5]) + (", ..." if len(found) > 5 else "")
            limit = "; with a larger limit: --max-tokens" if status == "max_tokens" else ""
            again = f"To ask again: collect --retry {status}{limit}"
            report(Warning(f"{len(found):,} {words}{why}: {names}. They are not learned. {again}"))


def _summarise(config: CollectConfig, result: AskResult) -> CollectResult:
    answers = [answer for answer in result.answers if answer]
    stop_reasons = Counter("empty" if answer.status == "empty" else answer.stop_reason for answer in answers)
    return CollectResult(
        path=result.journal,
        teacher=config.teacher,
        models=tuple(dict.fromkeys(answer.model for answer in answers if answer.model)),
        n_prompts=len(result.answers),
        n_answered=len(answers),
        n_new=result.n_new,
        stop_reasons=dict(stop_reasons.most_common()),
        failed=result.failed,
        n_in_batches=result.n_in_batches,
        seconds=result.seconds,
        cost_usd=result.cost_usd,
        total_cost_usd=sum(answer.cost_usd or 0.0 for answer in set(answers)),
        usage=result.usage,
        total_usage=result.total_usage,
    )
