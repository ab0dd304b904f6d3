"""Whether a fused model does what its adapter does: loss, distributions and greedy text on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_distill.errors import VerificationError
from mlx_distill.events import Progress, Report
from mlx_distill.fuse.check import Check
from mlx_distill.models.adapter import attach, read_adapter_config
from mlx_distill.models.generate import Completion, generate_batch
from mlx_distill.models.load import Head, Student, load_student
from mlx_distill.models.score import Batch, chunks, computed, pad, passes
from mlx_distill.models.tokenize import Rendered, render, render_prompt
from mlx_distill.records import Example

GAIN_SHARE = 0.02
"""The losses of adapter and fused may differ by this share of what the adapter gained over the base (or lost)."""
GAIN_SHARE_QUANTIZED = 0.10
"""The same where the fused model is quantised."""
LOSS_FLOOR = 1e-4
"""Nats a token that are allowed in any case: where the adapter gained next to nothing, a share of it means nothing."""
KL_SHARE = 0.5
"""KL(adapter || fused) must stay below this share of KL(adapter || base): beyond it, the
adapter is gone, or drowned by the rounding of the weights."""
KL_FLOOR = 1e-5
"""Nats a token that the rounding of a computation alone may cause."""
_ADVICE = (
    "Use the adapter as it is (`mlx-distill chat` does). Where the adapter was hardly trained, train longer: "
    "an update that is small beside the rounding of the base's weights cannot be fused."
)
_ADVICE_QUANTIZED = (
    "So few bits cannot hold what the adapter changed. Fuse without --q-bits, or with --q-bits 8, "
    "or with --q-group-size 32, which keeps more."
)
GREEDY_PROMPTS = 4
GREEDY_TOKENS = 48


@dataclass(frozen=True)
class Reading:
    """One model's hidden states at every supervised token, and what its head makes of them.

    The states are small (N x D); with the head they stand for the whole model, which can leave memory.
    """

    head: Head
    hidden: tuple[mx.array, ...]  # per batch (N, D)


@dataclass(frozen=True)
class Comparison:
    """Two models at the same tokens."""

    losses: npt.NDArray[np.float64]  # (N, 2): the first model's and the second's
    correct: npt.NDArray[np.bool_]  # (N, 2)
    kl: float
    """Mean over tokens of sum_v p(v) (log p(v) - log q(v)): p the first model's, q the second's. In nats."""

    def loss(self, which: int) -> float:
        return float(self.losses[:, which].mean())

    def accuracy(self, which: int) -> float:
        return float(self.correct[:, which].mean())


@dataclass(frozen=True)
class Reference:
    """What the adapter does, measured before its model leaves memory."""

    origin: str
    """The adapter's folder, and which moment of training it is."""
    batches: tuple[Batch, ...]
    prompts: tuple[list[int], ...]
    adapter: Reading
    to_base: Comparison
    greedy: tuple[Completion, ...]


def measure_adapter(model: Path, adapter_folder: Path, examples: Sequence[Example], report: Report) -> Reference:
    """Read base and adapter on the examples, with one copy of the weights."""
    read_adapter_config(adapter_folder)
    student = load_student(model)
    rows = [render(student.tokenizer, example.messages) for example in examples]
    batches = tuple(_batches(rows))
    prompts = tuple(_prompt(student, example) for example in examples[:GREEDY_PROMPTS])
    adapter = attach(student, adapter_folder)
    adapter.enabled = False
    base = _read(student, batches, report, "read base")
    adapter.enabled = True
    adapted = _read(student, batches, report, "read adapter")
    greedy = generate_batch(student, prompts, max_tokens=GREEDY_TOKENS, report=report, job="write with adapter")
    return Reference(adapter.origin, batches, prompts, adapted, _compare(adapted, base, batches), tuple(greedy))


def check(folder: Path, reference: Reference, report: Report) -> Check:
    """Measure the fused model in `folder` against the adapter; VerificationError where it falls short."""
    student = load_student(folder)
    fused = _read(student, reference.batches, report, "read fused")
    greedy = generate_batch(student, reference.prompts, max_tokens=GREEDY_TOKENS, report=report, job="write with fused")
    share = GAIN_SHARE_QUANTIZED if student.quantized else GAIN_SHARE
    to_base, to_fused = reference.to_base, _compare(reference.adapter, fused, reference.batches)
    result = Check(
        base_loss=to_base.loss(1),
        adapter_loss=to_fused.loss(0),
        fused_loss=to_fused.loss(1),
        base_accuracy=to_base.accuracy(1),
        adapter_accuracy=to_fused.accuracy(0),
        fused_accuracy=to_fused.accuracy(1),
        allowed_difference=max(share * abs(to_base.loss(1) - to_base.loss(0)), LOSS_FLOOR),
        kl=to_fused.kl,
        kl_base=to_base.kl,
        n_rows=sum(len(batch.tokens_of_row) for batch in reference.batches),
        n_tokens=len(to_fused.losses),
        divergences=tuple(map(_first_difference, reference.greedy, greedy)),
        greedy_tokens=GREEDY_TOKENS,
    )
    _judge(result, quantized=student.quantized)
    return result


def _judge(result: Check, *, quantized: bool) -> None:
    """Raise VerificationError with every reason. Written so that a loss that is not a number fails too."""
    difference = abs(result.fused_loss - result.adapter_loss)
    allowed_kl = max(KL_SHARE * result.kl_base, KL_FLOOR)
    problems = []
    if not difference <= result.allowed_difference:
        problems.append(
            f"loss on {result.n_rows} test rows: adapter {result.adapter_loss:.4f}, fused {result.fused_loss:.4f}, "
            f"base {result.base_loss:.4f}; they may differ by {result.allowed_difference:.4f}"
        )
    if not result.kl <= allowed_kl:
        problems.append(
            f"KL(adapter || fused) is {result.kl:.2g} nats a token, KL(adapter || base) {result.kl_base:.2g}: "
            "the fused model is more than half as far from the adapter as the base is"
        )
    if problems:
        raise VerificationError(
            "The fused model does not do what the adapter does; nothing was written.",
            _ADVICE_QUANTIZED if quantized else _ADVICE,
            problems,
        )


def _batches(rows: Sequence[Rendered]) -> list[Batch]:
    groups = passes([len(row.tokens) for row in rows])
    return [pad([rows[index] for index in group]) for group in groups]


def _prompt(student: Student, example: Example) -> list[int]:
    first = next(index for index, message in enumerate(example.messages) if message.role == "assistant")
    return render_prompt(student.tokenizer, example.messages[:first])


def _read(student: Student, batches: Sequence[Batch], report: Report, job: str) -> Reading:
    hidden: list[mx.array] = []
    report(Progress(job, 0, len(batches), "batches"))
    for states in computed(batches, lambda batch: batch.gather(student.hidden(batch.inputs))):
        hidden.append(states)
        report(Progress(job, len(hidden), len(batches), "batches"))
    return Reading(student.head, tuple(hidden))


def _compare(first: Reading, second: Reading, batches: Sequence[Batch]) -> Comparison:
    """Losses, correctness and KL from the same logits, made in chunks of rows.

    Each exponential is taken once: over a vocabulary they are what this costs on a CPU.
    """
    losses, correct, divergences = [], [], []
    for batch, p_hidden, q_hidden in zip(batches, first.hidden, second.hidden, strict=True):
        vocabulary = first.head(p_hidden[:1]).shape[-1]
        for rows in chunks(p_hidden.shape[0], vocabulary):
            targets = batch.targets[rows][:, None]
            p, log_p = _softmax(first.head(p_hidden[rows]))
            _, log_q = _softmax(second.head(q_hidden[rows]))
            both = [mx.take_along_axis(values, targets, axis=-1) for values in (log_p, log_q)]
            best = [mx.argmax(values, axis=-1, keepdims=True) == targets for values in (log_p, log_q)]
            losses.append(np.array(-mx.concatenate(both, axis=-1), dtype=np.float64))
            correct.append(np.array(mx.concatenate(best, axis=-1)))
            divergences.append(np.array((p * (log_p - log_q)).sum(axis=-1), dtype=np.float64))
    kl = float(np.concatenate(divergences).mean())
    return Comparison(np.concatenate(losses), np.concatenate(correct), max(kl, 0.0))  # below 0 only by rounding


def _softmax(logits: mx.array) -> tuple[mx.array, mx.array]:
    """Probabilities and their logarithms, (N, V) in float32."""
    shifted = logits.astype(mx.float32)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    powers = mx.exp(shifted)
    total = powers.sum(axis=-1, keepdims=True)
    return powers / total, shifted - mx.log(total)


def _first_difference(one: Completion, other: Completion) -> int | None:
    if one.tokens == other.tokens:
        return None
    pairs = enumerate(zip(one.tokens, other.tokens, strict=False))
    shorter = min(len(one.tokens), len(other.tokens))
    return next((index for index, (a, b) in pairs if a != b), shorter)
