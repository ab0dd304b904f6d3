"""On-policy distillation: the student writes, the teacher scores, and the student learns the teacher's probabilities.

At each step the student answers the prompts of the rows that are due, with its adapter as it is: a rollout. Then the
step is one of `kd` with a teacher in memory, on the tokens that the student drew: a text is never tokenized again.
Rollouts depend on the adapter, the seed and the step alone, so a resumed run writes them again.
See Agarwal et al. 2023, "On-Policy Distillation of Language Models" (arXiv:2306.13649).
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mlx_distill import cpu
from mlx_distill.errors import MachineError
from mlx_distill.formatting import format_percent
from mlx_distill.models.generate import Completion, generate_batch
from mlx_distill.models.load import Student
from mlx_distill.models.score import round_up
from mlx_distill.models.tokenize import TokenizedChat
from mlx_distill.similarity import repetition
from mlx_distill.storage import files
from mlx_distill.storage.atomic import write_text
from mlx_distill.storage.journal import Journal
from mlx_distill.storage.jsonl import each_jsonl
from mlx_distill.train.config import TrainConfig
from mlx_distill.train.objectives.kd import LiveKd, LiveRow

SAMPLES = 2
"""Rollouts of each step that `rollouts.jsonl` keeps."""
WINDOW = 5
"""Steps at the start, and before now, whose means decide whether the answers run away."""
MAX_GROWTH, MAX_CUT_OFF = 2.0, 0.5
"""Answers run away if they became this many times as long, and more than this fraction is cut off."""
CACHE_STEP = 256
"""mlx-lm allocates the key-value cache in steps of this many tokens."""
CACHE_COPIES = 2
"""The caches of single rows and that of the batch exist together when rows join a batch."""


class Rollouts(msgspec.Struct, frozen=True):
    """A line of `rollouts.jsonl`: means over the rollouts of a step, and some of them."""

    step: int
    answer_tokens: float
    """End tokens included."""
    cut_off: float
    """Fraction of rollouts without an end token."""
    repetition: float
    """Fraction of phrases that their answer has already."""
    samples: tuple[Mapping[str, Any], ...] = ()


class OnPolicy(LiveKd):
    """Minimises a divergence from the teacher's distribution of each token that the student itself writes."""

    def __init__(self, config: TrainConfig, student: Student) -> None:
        super().__init__(config, student)
        self.file = config.adapter / files.ROLLOUTS
        self.history: list[Rollouts] = []
        """The rollouts of all steps, without their samples. Empty before the first roll."""

    def rows_for_step(self, rows: Sequence[Any], step: int) -> Sequence[LiveRow]:
        """Replace the last answer of each row by answers of the student. A share of rows may stay as prepared.

        Raises MachineError if the answers run away.
        """
        self.history = self.history or read_rollouts(self.file, step)
        config, draw = self.config, random.Random(self.config.step_seed(step))
        prepared: list[LiveRow] = []
        asked: list[LiveRow] = []
        for row in rows:
            if draw.random() < config.prepared_share:
                prepared.append(row)
            else:
                asked += [row] * config.rollout_samples
        self.student.model.eval()
        with cpu.shared_cores(1):
            completions = generate_batch(
                self.student,
                [list(row.tokens[: answer_start(row)]) for row in asked],
                max_tokens=config.rollout_tokens,
                temperature=config.rollout_temperature,
                seed=config.step_seed(step),
            )
        answers = [answer_of(completion) for completion in completions]
        self.figures = {}
        if answers:
            self._record(step, asked, completions)
            self._check_length()
        return [*prepared, *(with_answer(row, answer) for row, answer in zip(asked, answers, strict=True))]

    def largest_step(self, rows: Sequence[TokenizedChat]) -> Sequence[TokenizedChat]:
        """Return the longest prompts with answers up to the limit. A prepared row may be longer."""
        answer = (0,) * self.config.rollout_tokens
        rolled = [_replace_answer(row, answer) for row in rows]
        if self.config.prepared_share:
            rolled = [max(pair, key=lambda row: len(row.tokens)) for pair in zip(rolled, rows, strict=True)]
        return [row for row in super().largest_step(rolled) for _ in range(self.config.rollout_samples)]

    def rollout_bytes(self, rows: Sequence[TokenizedChat]) -> int:
        """Return the memory of the key-value caches."""
        sizes = self.student.config
        head = sizes.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"]
        width = 2 * head * (sizes.get("num_key_value_heads") or sizes["num_attention_heads"])
        n_tokens = sum(round_up(len(row.tokens), CACHE_STEP) for row in rows)
        return int(CACHE_COPIES * n_tokens * width * len(self.student.model.layers) * self.student.dtype.size)

    def _record(self, step: int, asked: Sequence[TokenizedChat], completions: Sequence[Completion]) -> None:
        """Compute the figures, and write them with some rollouts."""
        means = Rollouts(
            step,
            float(np.mean([len(answer_of(completion)) for completion in completions])),
            float(np.mean([not completion.finished for completion in completions])),
            float(np.mean([repetition(completion.tokens) for completion in completions])),
        )
        decode = self.student.tokenizer.decode
        samples = [
            {"prompt": decode(row.tokens[: answer_start(row)]), "answer": found.text, "finished": found.finished}
            for row, found in zip(asked[:SAMPLES], completions, strict=False)
        ]
        with Journal(self.file) as journal:
            journal.append({**msgspec.to_builtins(means), "samples": samples}, durable=False)
        self.figures = {name: getattr(means, name) for name in ("answer_tokens", "cut_off", "repetition")}
        self.history.append(means)

    def _check_length(self) -> None:
        """Raise MachineError if the answers became much longer and most of them are cut off."""
        first, last = self.history[:WINDOW], self.history[-WINDOW:]
        before, now = (float(np.mean([means.answer_tokens for means in part])) for part in (first, last))
        cut_off = float(np.mean([means.cut_off for means in last]))
        run_away = now > MAX_GROWTH * before and cut_off > MAX_CUT_OFF
        if not run_away or len(self.history) < 2 * WINDOW:
            return
        raise MachineError(
            f"Step {last[-1].step}: the student's answers run away. They grew from {before:.0f} to {now:.0f} tokens, "
            f"and {format_percent(cut_off)} of them are cut off (see {self.file}).",
            f"{self.config.adapter} holds the best adapter so far. Train again with --force and a lower "
            "--learning-rate, a larger --prepared-share, or more --rollout-tokens if the answers need them.",
        )


def answer_start(row: TokenizedChat) -> int:
    """Return the index of the first token of the last answer."""
    start = max(index for index, supervised in enumerate(row.mask) if supervised)
    while row.mask[start - 1]:
        start -= 1
    return start


def answer_of(completion: Completion) -> tuple[int, ...]:
    """Return the tokens that were drawn: with the end token, if the answer was not cut off."""
    return completion.tokens if completion.end_token is None else (*completion.tokens, completion.end_token)


def with_answer(row: LiveRow, answer: tuple[int, ...]) -> LiveRow:
    """Replace the last answer, for student and teacher. Only the new answer is supervised."""
    own = _replace_answer(row, answer)
    return LiveRow(own.tokens, own.mask, _replace_answer(row.view, answer))


def read_rollouts(path: Path, step: int) -> list[Rollouts]:
    """Return the lines of the steps before `step`, without samples. Remove the others from the file."""
    if not path.exists():
        return []
    lines = [line for _, line in each_jsonl(path, _line, skip_partial_line=True) if line.step < step]
    write_text(path, "".join(json.dumps(msgspec.to_builtins(line), ensure_ascii=False) + "\n" for line in lines))
    return [msgspec.structs.replace(line, samples=()) for line in lines]


def _replace_answer(row: TokenizedChat, answer: tuple[int, ...]) -> TokenizedChat:
    start = answer_start(row)
    return TokenizedChat((*row.tokens[:start], *answer), (False,) * start + (True,) * len(answer))


def _line(data: object) -> Rollouts:
    return msgspec.convert(data, Rollouts)
