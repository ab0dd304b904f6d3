"""Distance between a student's probabilities and its teacher's, on the answer tokens of given rows.

With p the teacher's and q the student's distribution of the next token, over the ids that both share:

    KL(teacher || student) = sum p log(p / q)     KL(student || teacher) = sum q log(q / p)     in nats
    acceptance = sum min(p, q) = 1 - TV           the tokens of the student as a draft that the teacher accepts
                                                  (Leviathan et al. 2022, arXiv:2211.17192)
    agreement: the most probable token is the same

Both heads compute in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_distill.events import Progress, Report, ignore
from mlx_distill.models.load import Head, Student
from mlx_distill.models.local_teacher import BATCH_TOKENS, LocalTeacher, exact_head
from mlx_distill.models.score import chunk_limit, make_batches, map_batches, map_chunks, pad
from mlx_distill.models.tokenize import TokenizedChat


@dataclass(frozen=True)
class RowFidelity:
    """The sums over the answer tokens of one row."""

    kl: float
    """KL(teacher || student)."""
    reverse_kl: float
    acceptance: float
    n_agreed: int
    n_tokens: int


def measure_fidelity(
    student: Student,
    teacher: LocalTeacher,
    rows: Sequence[TokenizedChat],
    views: Sequence[TokenizedChat],
    report: Report = ignore,
    job: str = "fidelity",
) -> tuple[RowFidelity, ...]:
    """Compare a student as it is (adapter on or off) with its teacher, row by row.

    `views` are the rows as `LocalTeacher.view` returns them.
    """
    head = exact_head(student.head, teacher.vocabulary)
    groups = make_batches([len(view.tokens) for view in views], BATCH_TOKENS)

    def compare(group: Sequence[int]) -> mx.array:
        own, theirs = pad([rows[index] for index in group]), pad([views[index] for index in group])
        hidden = own.gather(student.hidden(own.inputs))
        return token_fidelities(head, hidden, teacher.head, teacher.hidden_of(theirs), teacher.vocabulary)

    found: dict[int, RowFidelity] = {}
    report(Progress(job, 0, len(rows), "rows"))
    for group, result in zip(groups, map_batches(groups, compare), strict=True):
        values, start = np.array(result, dtype=np.float64), 0
        for index in group:
            n_tokens = rows[index].n_targets
            kl, reverse_kl, acceptance, agreed = values[start : start + n_tokens].sum(axis=0)
            found[index] = RowFidelity(float(kl), float(reverse_kl), float(acceptance), round(agreed), n_tokens)
            start += n_tokens
        report(Progress(job, len(found), len(rows), "rows"))
    return tuple(found[index] for index in range(len(rows)))


def token_fidelities(
    head: Head,
    hidden: mx.array,
    teacher_head: Head,
    teacher_hidden: mx.array,
    vocabulary: int,
    chunk_bytes: int = 0,
) -> mx.array:
    """Return KL, reverse KL, acceptance and agreement (0 or 1) of each token: (N, 4) float32.

    The heads return logits (..., vocabulary) in float32. Those of one chunk of tokens exist at a time: `chunk_bytes`
    for each head (0: half the device's).
    """

    def compute(hidden: mx.array, teacher_hidden: mx.array) -> list[mx.array]:
        ours, theirs = head(hidden), teacher_head(teacher_hidden)
        agreed = mx.argmax(ours, axis=-1) == mx.argmax(theirs, axis=-1)
        log_q = ours - mx.logsumexp(ours, axis=-1, keepdims=True)
        log_p = theirs - mx.logsumexp(theirs, axis=-1, keepdims=True)
        p, q = mx.exp(log_p), mx.exp(log_q)
        columns = [(p * (log_p - log_q)).sum(axis=-1), (q * (log_q - log_p)).sum(axis=-1)]
        columns += [mx.minimum(p, q).sum(axis=-1), agreed.astype(mx.float32)]
        return [mx.stack(columns, axis=-1)]

    chunk_bytes = chunk_bytes or chunk_limit() // 2  # there are two heads
    (found,) = map_chunks(compute, [hidden, teacher_hidden], vocabulary, chunk_bytes)
    return found
