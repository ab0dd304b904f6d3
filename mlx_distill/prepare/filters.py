"""Check a teacher's answer: it becomes a row, or it is rejected with one reason."""

from __future__ import annotations

import re
from pathlib import Path

from msgspec import structs

from mlx_distill.code_blocks.blocks import code_blocks
from mlx_distill.code_blocks.syntax import python_problem
from mlx_distill.errors import InputError
from mlx_distill.models.load import load_tokenizer
from mlx_distill.models.tokenize import control_tokens, find_control_token, render
from mlx_distill.prepare.config import Nearest, PrepareConfig
from mlx_distill.prepare.rows import Row
from mlx_distill.prepare.select import Reason, Rejection
from mlx_distill.records import Example, Message, Prompt, TeacherRecord
from mlx_distill.sanitize import surrogate_problem, without_thinking
from mlx_distill.similarity import NearDuplicateIndex, OverlapIndex, ngrams, normalize
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.storage.package_data import package_data_path

MIN_ANSWER_NGRAMS = 20
"""A known answer with fewer trigrams is too short to show that another answer copies it."""


class _TestPrompt(Prompt, frozen=True):
    answer: str = ""


def protected_texts(path: Path) -> list[tuple[str, str]]:
    """Return (id, text) of each test prompt of a JSONL file, then (id, text) of the known answers.

    A line may contain its "answer". The package contains the answers to the shipped test prompts.
    """
    known = read_jsonl(package_data_path("sample") / "test_answers.jsonl", TeacherRecord.from_json)
    answers = {record.prompt_id: record.answer for record in known}
    next_step = "Give the file of your test prompts, or remove the setting to use the shipped ones."
    prompts = read_jsonl(path, _TestPrompt.from_json, next_step)
    answered = [(prompt.id, prompt.answer or answers.get(prompt.id, "")) for prompt in prompts]
    long_enough = [(prompt_id, text) for prompt_id, text in answered if len(ngrams(text)) >= MIN_ANSWER_NGRAMS]
    return [(prompt.id, prompt.text) for prompt in prompts] + long_enough


class RowFilter:
    """Collects the rows and the rejected answers. Each answer is also compared with the rows before it."""

    def __init__(self, config: PrepareConfig) -> None:
        self.rows: list[Row] = []
        self.rejected: list[Rejection] = []
        self.identity_ids: list[str] = []
        """Kept answers in which the teacher calls itself a model."""
        self.n_thoughts = 0
        """Answers with reasoning."""
        self.nearest: Nearest | None = None
        self._config = config
        self._tokenizer = load_tokenizer(config.model)
        self._control_tokens = control_tokens(self._tokenizer)
        self._system = (Message("system", config.system),) if config.system else ()
        if found := find_control_token(self._system, self._control_tokens):
            raise InputError(f"The setting system cannot be used: {found}.", "Remove the control token from it.")
        self._protected = OverlapIndex(protected_texts(config.test_prompts_file))
        self._first_ids: dict[tuple[str, str, int], str] = {}
        threshold = config.filter.dedup_threshold
        self._kept = NearDuplicateIndex(threshold) if threshold else None

    def add(self, record: TeacherRecord) -> None:
        """Add the answer to `rows` or to `rejected`.

        The student's system message replaces the teacher's, and the context is left out. White space at the ends of the
        answer is removed.
        """
        turns, answer = record.turns, record.answer.strip()
        thinking = self._config.thinking
        if thinking == "drop":
            turns = tuple(
                structs.replace(turn, content=without_thinking(turn.content)) if turn.role == "assistant" else turn
                for turn in turns
            )
            answer = without_thinking(answer).strip()
        if "</think>" in record.answer:
            self.n_thoughts += 1
        if not without_thinking(answer).strip():
            self.rejected.append(Rejection(record.prompt_id, record.key, Reason.NO_ANSWER, "only <think> ... </think>"))
            return
        example = Example(
            (*self._system, *turns, Message("assistant", answer)),
            record.prompt_id,
            record.family,
            record.category,
            record.context,
            mask_thinking=thinking == "mask" and "</think>" in answer,
        )
        outcome = self._check(example, "\n".join(turn.content for turn in turns), record.sample)
        if isinstance(outcome, Row):
            self.rows.append(outcome)
        else:
            self.rejected.append(Rejection(record.prompt_id, record.key, *outcome))

    def _check(self, example: Example, prompt: str, sample: int) -> Row | tuple[Reason, str]:
        """Return the row, or the reason of the first failed check with its detail."""
        config, limits, answer = self._config, self._config.filter, example.messages[-1].content
        text, asked = f"{prompt}\n{answer}", (normalize(prompt), example.context, sample)
        if problem := surrogate_problem(text):
            return Reason.INVALID_TEXT, problem
        # A test prompt of one or two words is a single n-gram: only the prompt alone can match it.
        overlaps = (*self._protected.find(prompt), *self._protected.find(text))
        overlap = max(overlaps, key=lambda match: match.similarity, default=None)
        if overlap and overlap.similarity >= config.contamination_threshold:
            threshold = f"contamination_threshold is {config.contamination_threshold:g}"
            return Reason.CONTAMINATION, f"contains {overlap.similarity:.2f} of {overlap.key}, {threshold}"
        if limits.require_parsing_code and (broken := find_broken_code(answer)):
            return Reason.BROKEN_CODE, broken
        identity = IDENTITY_PHRASE.search(answer)
        if identity and limits.reject_identity:
            return Reason.IDENTITY, f'the answer says "{identity.group()}"'
        if found := find_control_token(example.messages, self._control_tokens):
            return Reason.CONTROL_TOKEN, found
        rendered = render(self._tokenizer, example)
        row = Row(example, len(rendered.tokens), rendered.n_supervised)
        n = row.n_supervised
        if row.n_tokens > config.max_length:
            return Reason.TOO_LONG, f"{row.n_tokens} tokens, max_length is {config.max_length}"
        if n < limits.min_answer_tokens:
            return Reason.ANSWER_TOO_SHORT, f"{n} tokens, min_answer_tokens is {limits.min_answer_tokens}"
        if limits.max_answer_tokens is not None and n > limits.max_answer_tokens:
            return Reason.ANSWER_TOO_LONG, f"{n} tokens, max_answer_tokens is {limits.max_answer_tokens}"
        if asked in self._first_ids:
            return Reason.DUPLICATE, f"same prompt as {self._first_ids[asked]}"
        if self._kept and (match := self._kept.find(text)):
            threshold = f"dedup_threshold is {limits.dedup_threshold:g}"
            return Reason.NEAR_DUPLICATE, f"{match.similarity:.2f} like {match.key}, {threshold}"

        self._first_ids[asked] = example.id
        if self._kept:
            self._kept.add(example.id, text)
        if identity:
            self.identity_ids.append(example.id)
        if overlap and overlap.similarity > (self.nearest.likeness if self.nearest else 0):
            self.nearest = Nearest(example.id, overlap.key, round(overlap.similarity, 4))
        return row


def find_broken_code(answer: str) -> str:
    """Return the number of the first Python block that does not parse, and why; "" if all parse."""
    for number, block in enumerate(code_blocks(answer), start=1):
        problem = python_problem(block.code) if block.language == "python" else ""
        if problem:
            return f"code block {number} (python), {problem}"
    return ""


IDENTITY_PHRASE = re.compile(
    r"\bas an? (?:large |small )?(?:AI|artificial intelligence|language model)\b(?!-)"
    r"|\bI(?:['’]m| am) (?:an? (?:AI|artificial intelligence|(?:large )?language model)\b(?!-)"
    r"|(?:Claude|ChatGPT|GPT|Gemini|Llama|Qwen|Mistral|DeepSeek)\b)"
    r"|\bmy name is (?:Claude|ChatGPT|Gemini|Qwen)\b"
    r"|\b(?:created|developed|made|trained) by (?:Anthropic|OpenAI|Google DeepMind|Alibaba Cloud|Meta AI)\b",
    re.IGNORECASE,
)
"""The teacher calls itself a model: "as an AI", "I am Claude"."""
