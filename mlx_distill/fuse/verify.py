"""Verification of a fused model against its adapter: loss, distributions and greedy text on held-out rows.

Base, adapter and fused model are computed in the same type: the compute type if the files have it, else float32.
Rounding float16 files to bfloat16 first would cost more than a small adapter gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_distill import device
from mlx_distill.errors import VerificationError
from mlx_distill.events import Progress, Report
from mlx_distill.fuse.config import FuseCheck
from mlx_distill.models.adapter import load_adapter
from mlx_distill.models.generate import Completion, generate_batch
from mlx_distill.models.load import Head, Student, load_student
from mlx_distill.models.safetensors_io import read_headers
from mlx_distill.models.score import Batch, chunks, make_batches, map_batches, pad, vocabulary_of
from mlx_distill.models.tokenize import render, render_prompt
from mlx_distill.records import Example

GAIN_FRACTION, GAIN_FRACTION_QUANTIZED = 0.02, 0.10
"""Maximum difference between the losses of adapter and fused model, as a fraction of the adapter's gain (or loss)."""
LOSS_FLOOR = 1e-4
"""Nats per token that are always allowed: a fraction of almost no gain means nothing."""
KL_FRACTION = 0.5
"""KL(adapter || fused) must stay below this fraction of KL(adapter || base). Above it, the adapter is lost."""
KL_FLOOR = 1e-5
"""Nats per token that the rounding of a computation alone may cause."""
GREEDY_PROMPTS, GREEDY_TOKENS = 4, 48
_ADVICE = (
    "Use the adapter as it is (`mlx-distill chat` does). If the training was short, train longer: an update that is "
    "small compared with the rounding of the base's weights cannot be fused."
)
_ADVICE_QUANTIZED = (
    "So few bits cannot hold what the adapter changed. Fuse without --q-bits, or with --q-bits 8, "
    "or with --q-group-size 32, which keeps more."
)


@dataclass(frozen=True)
class HiddenStates:
    """A model's hidden states at all supervised tokens, and its head. They are small: the model can leave memory."""

    head: Head
    batches: tuple[mx.array, ...]  # (N, D) each


@dataclass(frozen=True)
class LogitComparison:
    """Two models, p and q, at the same N tokens."""

    p_loss: float
    q_loss: float
    p_accuracy: float
    q_accuracy: float
    kl: float
    """Mean over tokens of sum_v p(v) (log p(v) - log q(v)), in nats."""
    n_tokens: int


def check_fused(
    fused_folder: Path, model: Path, adapter_folder: Path, examples: Sequence[Example], report: Report
) -> FuseCheck:
    """Compare a fused model with its base and adapter. VerificationError lists every reason to refuse it."""
    file_dtype = read_headers(model).dtype
    compute = device.prepare().dtype_for(file_dtype)
    dtype = compute if str(compute).endswith(f".{file_dtype}") else mx.float32
    student = load_student(model, dtype=dtype)
    rows = [render(student.tokenizer, example) for example in examples]
    batches = [pad([rows[index] for index in group]) for group in make_batches([len(row.tokens) for row in rows])]
    prompts = [_prompt(student, example) for example in examples[:GREEDY_PROMPTS]]

    def measure(student: Student, name: str) -> tuple[HiddenStates, list[Completion]]:
        hidden, job = _hidden_states(student, batches, report, f"run {name}"), f"generate with {name}"
        return hidden, generate_batch(student, prompts, max_tokens=GREEDY_TOKENS, report=report, job=job)

    base = _hidden_states(student, batches, report, "run base")
    load_adapter(student, adapter_folder)
    adapted, adapted_text = measure(student, "adapter")
    student = load_student(fused_folder, dtype=dtype)
    fused, fused_text = measure(student, "fused")
    to_base, to_fused = _compare(adapted, base, batches), _compare(adapted, fused, batches)
    fraction = GAIN_FRACTION_QUANTIZED if student.quantized else GAIN_FRACTION
    check = FuseCheck(
        base_loss=to_base.q_loss,
        adapter_loss=to_fused.p_loss,
        fused_loss=to_fused.q_loss,
        base_accuracy=to_base.q_accuracy,
        adapter_accuracy=to_fused.p_accuracy,
        fused_accuracy=to_fused.q_accuracy,
        allowed_difference=max(fraction * abs(to_base.q_loss - to_base.p_loss), LOSS_FLOOR),
        kl=to_fused.kl,
        kl_base=to_base.kl,
        n_rows=len(rows),
        n_tokens=to_fused.n_tokens,
        divergences=tuple(map(_first_difference, adapted_text, fused_text)),
        greedy_tokens=GREEDY_TOKENS,
    )
    _check_limits(check, student.quantized)
    return check


def _check_limits(check: FuseCheck, quantized: bool) -> None:
    problems = []
    # Written so that a loss that is not a number fails too.
    if not abs(check.fused_loss - check.adapter_loss) <= check.allowed_difference:
        problems.append(
            f"loss on {check.n_rows} test rows: adapter {check.adapter_loss:.4f}, fused {check.fused_loss:.4f}, "
            f"base {check.base_loss:.4f}; adapter and fused may differ by {check.allowed_difference:.4f}"
        )
    if not check.kl <= max(KL_FRACTION * check.kl_base, KL_FLOOR):
        problems.append(
            f"KL(adapter || fused) is {check.kl:.2g} nats per token, KL(adapter || base) {check.kl_base:.2g}: "
            "the fused model is more than half as far from the adapter as the base is"
        )
    if problems:
        raise VerificationError(
            "The fused model does not do what the adapter does; nothing was written.",
            _ADVICE_QUANTIZED if quantized else _ADVICE,
            problems,
        )


def _prompt(student: Student, example: Example) -> list[int]:
    first = next(index for index, message in enumerate(example.messages) if message.role == "assistant")
    return render_prompt(student.tokenizer, example.messages[:first], example.tools)


def _hidden_states(student: Student, batches: Sequence[Batch], report: Report, job: str) -> HiddenStates:
    hidden: list[mx.array] = []
    report(Progress(job, 0, len(batches), "batches"))
    for states in map_batches(batches, lambda batch: batch.gather(student.hidden(batch.inputs))):
        hidden.append(states)
        report(Progress(job, len(hidden), len(batches), "batches"))
    return HiddenStates(student.head, tuple(hidden))


def _compare(first: HiddenStates, second: HiddenStates, batches: Sequence[Batch]) -> LogitComparison:
    """Compute losses, accuracies and KL from the same logits, in chunks of rows.

    Each exponential is computed once: over a vocabulary, they take most of the time on a CPU.
    """
    losses, correct, divergences = [], [], []
    for batch, p_hidden, q_hidden in zip(batches, first.batches, second.batches, strict=True):
        for rows in chunks(p_hidden.shape[0], vocabulary_of(first.head, p_hidden)):
            targets = batch.targets[rows][:, None]
            p, log_p = _softmax(first.head(p_hidden[rows]))
            _, log_q = _softmax(second.head(q_hidden[rows]))
            target_log_probs = [mx.take_along_axis(values, targets, axis=-1) for values in (log_p, log_q)]
            best = [mx.argmax(values, axis=-1, keepdims=True) == targets for values in (log_p, log_q)]
            losses.append(np.array(-mx.concatenate(target_log_probs, axis=-1), dtype=np.float64))
            correct.append(np.array(mx.concatenate(best, axis=-1)))
            divergences.append(np.array((p * (log_p - log_q)).sum(axis=-1), dtype=np.float64))
    kl = np.concatenate(divergences)
    (p_loss, q_loss), (p_accuracy, q_accuracy) = (np.concatenate(v).mean(axis=0).tolist() for v in (losses, correct))
    mean_kl = max(float(kl.mean()), 0.0)  # below 0 only by rounding
    return LogitComparison(p_loss, q_loss, p_accuracy, q_accuracy, mean_kl, len(kl))


def _softmax(logits: mx.array) -> tuple[mx.array, mx.array]:
    """Return probabilities and their logarithms, (N, V) in float32."""
    shifted = logits.astype(mx.float32)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    powers = mx.exp(shifted)
    total = powers.sum(axis=-1, keepdims=True)
    return powers / total, shifted - mx.log(total)


def _first_difference(one: Completion, other: Completion) -> int | None:
    if one.tokens == other.tokens:
        return None
    pairs = enumerate(zip(one.tokens, other.tokens, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one.tokens), len(other.tokens)))
