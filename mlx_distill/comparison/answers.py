"""The test prompts answered by base, distilled and teacher: read, asked, and put beside one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_distill.comparison.config import CompareConfig
from mlx_distill.errors import DistillError, InputError, Interrupted, raise_problems
from mlx_distill.events import Report
from mlx_distill.records import Prompt, Request, conversation
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.students.generation import generate_batch
from mlx_distill.students.loading import Student
from mlx_distill.students.rendering import render_prompt
from mlx_distill.teachers import open_teacher
from mlx_distill.teachers.asking import ask_until_stopped
from mlx_distill.teachers.pacing import Patience
from mlx_distill.text_safety import encodable

JOURNAL = "test_answers.jsonl"
"""The teacher's answers to test prompts, beside the teacher's other data and never among it: nothing trains on them."""
CONCURRENCY = 8
"""Test prompts that the teacher is asked at once."""
PATIENCE = Patience(limit_seconds=60.0)
"""A teacher that is down holds the comparison up for no longer than this."""


@dataclass(frozen=True)
class StudentAnswer:
    """What base or distilled wrote."""

    text: str
    finished: bool
    """False where the limit cut it off."""
    n_tokens: int
    tokens_per_second: float


@dataclass(frozen=True)
class TeacherAnswer:
    """What the teacher wrote."""

    text: str
    finished: bool
    """False where it was cut off or refused."""
    stop_reason: str
    model: str


@dataclass(frozen=True)
class PromptAnswers:
    """One test prompt and its answers."""

    id: str
    category: str
    prompt: str
    base: StudentAnswer
    distilled: StudentAnswer
    teacher: TeacherAnswer | None
    """None where the teacher was left out or gave none."""


def read_prompts(file: Path) -> list[Prompt]:
    """The test prompts; InputError where there are none or two share an id."""
    prompts = read_jsonl(file, Prompt.from_json, 'Name a JSON lines file with a "prompt" in each line.')
    if not prompts:
        raise InputError(f"{file} holds no prompts.", 'Write one JSON object a line, such as {"prompt": "..."}.')
    counts = Counter(prompt.id for prompt in prompts)
    twice = [f"the id {name!r} is used {count} times" for name, count in counts.items() if count > 1]
    raise_problems(file, twice, "Give each prompt an id of its own.")
    return prompts


def answer_prompts(
    student: Student, prompts: Sequence[Prompt], name: str, config: CompareConfig, report: Report
) -> list[StudentAnswer]:
    """What the student as it is writes to every prompt, in their order."""
    asked = [render_prompt(student.tokenizer, conversation(prompt.text, config.system)) for prompt in prompts]
    completions = generate_batch(
        student,
        asked,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=config.seed,
        report=report,
        job=f"answers of {name}",
    )
    return [
        StudentAnswer(
            encodable(completion.text),
            completion.finished,
            len(completion.tokens),
            round(len(completion.tokens) / max(completion.seconds, 1e-9), 2),
        )
        for completion in completions
    ]


def ask_teacher(
    prompts: Sequence[Prompt], config: CompareConfig, report: Report
) -> tuple[dict[str, TeacherAnswer], list[str]]:
    """The teacher's answers by prompt id, asked for where the journal lacks them, and cautions about those missing.

    The same messages and limit as the student's. Whatever is wrong with the teacher is a caution, since the comparison
    is about the student; only Interrupted is raised.
    """
    requests = [
        (prompt, Request(config.teacher, conversation(prompt.text, config.system), config.max_tokens))
        for prompt in prompts
    ]
    journal = config.data / JOURNAL
    try:
        asked = ask_until_stopped(
            open_teacher(config.teacher),
            requests,
            journal,
            concurrency=CONCURRENCY,
            budget=config.budget,
            patience=PATIENCE,
            report=report,
            job="answers of the teacher",
        )
    except Interrupted:
        raise
    except DistillError as error:  # its name, its recording or the journal is wrong
        return {}, [_without_teacher(config.teacher, len(prompts), error)]
    if isinstance(asked.stopped_by, Interrupted):
        raise asked.stopped_by
    found = {
        prompt.id: TeacherAnswer(
            encodable(record.answer.text), record.answer.complete, record.answer.stop_reason, record.answer.model
        )
        for prompt, request in requests
        if (record := asked.records.get(request.key))
    }
    cautions = []
    if asked.stopped_by:
        cautions.append(_without_teacher(config.teacher, len(prompts) - len(found), asked.stopped_by))
    elif asked.unanswered:
        reasons = "; ".join(f"{one.prompt_id}: {one.reason}" for one in asked.unanswered)
        cautions.append(
            f"{config.teacher} gave no answer to {len(asked.unanswered)} of {len(prompts)} test prompts ({reasons}). "
            "They are compared without it; another --teacher may answer them, --no-teacher leaves it out."
        )
    return found, cautions


def _without_teacher(teacher: str, n_missing: int, error: DistillError) -> str:
    return (
        f"{n_missing} test prompts are compared without an answer of {teacher}. {error} "
        "Then compare again, or leave the teacher out with --no-teacher."
    )


def put_together(
    prompts: Sequence[Prompt],
    base: Sequence[StudentAnswer],
    distilled: Sequence[StudentAnswer],
    teacher: Mapping[str, TeacherAnswer],
) -> tuple[PromptAnswers, ...]:
    """The answers side by side; the teacher's are by prompt id."""
    return tuple(
        PromptAnswers(prompt.id, prompt.category, prompt.text, of_base, of_distilled, teacher.get(prompt.id))
        for prompt, of_base, of_distilled in zip(prompts, base, distilled, strict=True)
    )
