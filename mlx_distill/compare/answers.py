"""What base, distilled and teacher answer to the questions: written, asked for, and put beside one another."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx

from mlx_distill.compare.asking_beside import ask_beside
from mlx_distill.compare.config import AnswerConfig
from mlx_distill.compare.questions import Origin, Question
from mlx_distill.compare.sides import Side
from mlx_distill.errors import DistillError
from mlx_distill.events import Report
from mlx_distill.models.generate import generate_batch
from mlx_distill.models.load import Student
from mlx_distill.models.tokenize import render_prompt
from mlx_distill.records import Prompt, Request
from mlx_distill.sanitize import encodable

JOURNAL = "test_answers.jsonl"
"""The teacher's answers to test prompts, beside the teacher's other data and never among it: nothing trains on them."""
REPEATED_WORDS = 4
"""Words in a row that make a repetition when they were said before."""


@dataclass(frozen=True)
class StudentAnswer:
    """What base or distilled wrote."""

    text: str
    finished: bool
    """False where the limit cut it off."""
    n_tokens: int
    tokens_per_second: float
    repetition: float = field(init=False)
    """See `repetition`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "repetition", repetition(self.text))


@dataclass(frozen=True)
class TeacherAnswer:
    """What the teacher wrote."""

    text: str
    finished: bool
    """False where it was cut off or refused."""
    stop_reason: str
    model: str
    """As its provider names it; empty where that is not known."""
    n_tokens: int | None = None
    """By the student's tokenizer, without an end token."""
    repetition: float = field(init=False)
    """See `repetition`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "repetition", repetition(self.text))


@dataclass(frozen=True)
class PromptAnswers:
    """One question and its answers."""

    id: str
    category: str
    prompt: str
    base: StudentAnswer
    distilled: StudentAnswer
    teacher: TeacherAnswer | None
    """None where the teacher was left out or gave none."""
    origin: Origin = "test prompt"
    family: str = ""
    """Questions of one family are not independent; empty where it is a family of its own."""


@dataclass(frozen=True)
class Writing:
    """How one student wrote its answers, all at the same time."""

    n_tokens: int
    seconds: float
    tokens_per_second: float
    peak_bytes: int
    """The most memory that MLX held for arrays meanwhile, weights included."""


def repetition(text: str) -> float:
    """The share of a text's runs of four words that stand in it before; 0 where it has no such run."""
    words = text.split()
    runs = [tuple(words[n : n + REPEATED_WORDS]) for n in range(len(words) - REPEATED_WORDS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def write_answers(
    student: Student, questions: Sequence[Question], side: Side, config: AnswerConfig, report: Report
) -> tuple[list[StudentAnswer], Writing]:
    """What the side writes to every question, in their order."""
    asked = [render_prompt(student.tokenizer, question.messages) for question in questions]
    mx.reset_peak_memory()
    started = time.perf_counter()
    completions = generate_batch(
        student,
        asked,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=side.seed,
        report=report,
        job=f"answers of {side.name}",
    )
    seconds = max(time.perf_counter() - started, 1e-9)
    n_tokens = sum(len(completion.tokens) for completion in completions)
    answers = [
        StudentAnswer(
            encodable(completion.text),
            completion.finished,
            len(completion.tokens),
            round(len(completion.tokens) / max(completion.seconds, 1e-9), 2),
        )
        for completion in completions
    ]
    return answers, Writing(n_tokens, round(seconds, 3), round(n_tokens / seconds, 2), mx.get_peak_memory())


def ask_teacher(
    questions: Sequence[Question], config: AnswerConfig, report: Report
) -> tuple[dict[str, TeacherAnswer], list[str]]:
    """The teacher's answers by the question's id, and cautions about those missing.

    A test row holds its own. Test prompts are asked where the journal lacks them, with the same messages and limit as
    the student's. Whatever is wrong with the teacher is a caution, since the comparison is about the student; only
    Interrupted is raised.
    """
    held = {one.id: TeacherAnswer(encodable(one.held), True, "end_turn", "") for one in questions if one.held}
    prompts = [question for question in questions if question.id not in held]
    requests = [
        (
            Prompt(question.id, question.text, question.family, question.category),
            Request(config.teacher, question.messages, config.max_tokens),
        )
        for question in prompts
    ]
    asked = ask_beside(config.teacher, requests, config, JOURNAL, "answers of the teacher", report)
    if isinstance(asked, DistillError):
        return held, [_without_teacher(config.teacher, len(prompts), asked)]
    records = asked.records()
    found = held | {
        prompt.id: TeacherAnswer(encodable(record.answer), record.complete, record.stop_reason, record.model)
        for prompt, request in requests
        if (record := records.get(request.key))
    }
    cautions = []
    if asked.stopped_by:
        n_missing = len(prompts) + len(held) - len(found)
        cautions.append(_without_teacher(config.teacher, n_missing, asked.stopped_by))
    elif asked.failed:
        reasons = "; ".join(f"{one.prompt_id}: {one.reason}" for one in asked.failed)
        cautions.append(
            f"{config.teacher} gave no answer to {len(asked.failed)} of {len(prompts)} test prompts ({reasons}). "
            "They are compared without it; another --teacher may answer them, --no-teacher leaves it out."
        )
    return found, cautions


def _without_teacher(teacher: str, n_missing: int, error: DistillError) -> str:
    return (
        f"{n_missing} test prompts are compared without an answer of {teacher}. {error} "
        "Then compare again, or leave the teacher out with --no-teacher."
    )


def put_together(
    student: Student,
    questions: Sequence[Question],
    base: Sequence[StudentAnswer],
    distilled: Sequence[StudentAnswer],
    teacher: Mapping[str, TeacherAnswer],
) -> tuple[PromptAnswers, ...]:
    """The answers side by side; the teacher's are by the question's id."""
    return tuple(
        PromptAnswers(
            question.id,
            question.category,
            question.text,
            of_base,
            of_distilled,
            _counted(student, teacher.get(question.id)),
            question.origin,
            question.family,
        )
        for question, of_base, of_distilled in zip(questions, base, distilled, strict=True)
    )


def _counted(student: Student, answer: TeacherAnswer | None) -> TeacherAnswer | None:
    """The answer with its length in the student's tokens."""
    if answer is None:
        return None
    return replace(answer, n_tokens=len(student.tokenizer.encode(answer.text, add_special_tokens=False)))
