"""The answers of both models and of the teacher: written, collected, and checked for code."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from mlx_distill.code_blocks.blocks import Syntax, code_blocks
from mlx_distill.code_blocks.execution import run_blocks
from mlx_distill.code_blocks.syntax import check_syntax
from mlx_distill.compare.ask_teacher import ask, teacher_name
from mlx_distill.compare.config import AnswerConfig
from mlx_distill.compare.models import ModelSpec
from mlx_distill.compare.prompts import EvalPrompt
from mlx_distill.compare.report import CheckedAnswer, CheckedBlock, Execution
from mlx_distill.events import Report
from mlx_distill.models.context import read_context, with_context
from mlx_distill.models.generate import generate_batch
from mlx_distill.models.load import Student
from mlx_distill.models.tokenize import render_prompt
from mlx_distill.records import Prompt, Request, TeacherRecord
from mlx_distill.sanitize import encodable
from mlx_distill.similarity import repetition
from mlx_distill.storage import files


def generate_answers(
    student: Student, prompts: Sequence[EvalPrompt], spec: ModelSpec, config: AnswerConfig, report: Report
) -> tuple[list[CheckedAnswer], float]:
    """Have a model answer all prompts. Returns the answers in the order of the prompts, and the tokens per second."""
    started = time.perf_counter()
    completions = generate_batch(
        student,
        [render_prompt(student.tokenizer, prompt.messages, prompt.tools) for prompt in prompts],
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=spec.seed,
        report=report,
        job=f"answers of {spec.name}",
    )
    seconds = max(time.perf_counter() - started, 1e-9)
    answers = []
    for one in completions:
        text, n_tokens = encodable(one.text), len(one.tokens)
        blocks, rate = check_blocks(text, execute=config.execute), round(n_tokens / max(one.seconds, 1e-9), 2)
        answers.append(CheckedAnswer(text, one.finished, n_tokens, repetition(text.split()), blocks, rate))
    return answers, round(sum(answer.n_tokens for answer in answers) / seconds, 2)


def teacher_answers(
    student: Student, prompts: Sequence[EvalPrompt], config: AnswerConfig, report: Report
) -> tuple[dict[str, CheckedAnswer], list[str]]:
    """Return the teacher's answers by prompt id, and warnings about those that are missing.

    A held-out row has its own answer. Test prompts are asked, in the teacher's context and with the limit of the
    student. Trouble with the teacher is a warning; only Interrupted is raised.
    """
    context, name = read_context(config.teacher_context), teacher_name(config.teacher, config.model)
    records = {
        one.id: TeacherRecord(messages=one.messages, answer=one.teacher_answer) for one in prompts if one.teacher_answer
    }
    asks = [
        (
            Prompt(one.text, one.id, one.family, one.category),
            Request(name, with_context(context, one.messages, one.context), config.max_tokens),
        )
        for one in prompts
        if one.id not in records
    ]
    replies = ask(config.teacher, asks, config, files.TEST_ANSWERS, report)
    found = {prompt.id: replies.records[request.key] for prompt, request in asks if request.key in replies.records}
    n_missing, warnings = len(asks) - len(found), []
    if replies.error:
        warnings.append(
            f"{n_missing} test prompts have no answer from {config.teacher}. {replies.error} "
            "Then compare again, or leave the teacher out with --no-teacher."
        )
    elif replies.missing:
        warnings.append(
            f"{config.teacher} gave no answer to {n_missing} of {len(asks)} test prompts "
            f"({'; '.join(replies.missing)}). Another --teacher may answer them; --no-teacher leaves it out."
        )
    answers = {}
    for name, record in {**records, **found}.items():
        text = encodable(record.answer)
        n_tokens = len(student.tokenizer.encode(text, add_special_tokens=False))
        blocks, reason = check_blocks(text, execute=config.execute), "" if record.complete else record.stop_reason
        answers[name] = CheckedAnswer(
            text, record.complete, n_tokens, repetition(text.split()), blocks, stop_reason=reason, model=record.model
        )
    return answers, warnings


def check_blocks(text: str, *, execute: bool = False) -> tuple[CheckedBlock, ...]:
    """Check the syntax of each code block. With `execute`, also run the Python blocks that parse, in one process."""
    blocks = code_blocks(text)
    checks = []
    for block in blocks:
        found = check_syntax(block)
        checks.append(CheckedBlock(block.language, found.status, problem=found.problem))
    runnable = [
        n for n, check in enumerate(checks) if (check.language, check.syntax) == ("python", Syntax.PARSED) and execute
    ]
    for n, problem in zip(runnable, run_blocks([blocks[n].code for n in runnable]) if runnable else (), strict=True):
        execution = Execution.FAILED if problem else Execution.FINISHED
        checks[n] = msgspec.structs.replace(checks[n], execution=execution, problem=problem)
    return tuple(checks)
