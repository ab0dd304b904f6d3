"""A teacher's stored log-probabilities, made in the plainest way: all logits of a row at once."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_distill.models.load import load_student
from mlx_distill.models.signal import SignalWriter, Source, Values, row_key
from mlx_distill.models.tokenize import TokenizedChat
from mlx_distill.models.tokenizer_match import tokenizer_digest
from mlx_distill.storage import files
from tests.support.training import tokenized


def write_signal(data: Path, teacher: Path, top_k: int) -> Path:
    """Store the `top_k` log-probabilities of a model for all rows of a data folder; return the folder."""
    model = load_student(teacher, dtype=mx.float32)
    paths = [data / name for name in (files.TRAIN, files.VALID, files.TEST)]
    rows = {row_key(row): row for path in paths for row in tokenized(path, model)}

    def score(row: TokenizedChat) -> Values:
        logits = np.array(model.model(mx.array([row.tokens[:-1]])), dtype=np.float64)[0][np.array(row.mask[1:])]
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        ids = np.argsort(-logs, axis=-1, kind="stable")[:, :top_k]
        return ids.astype(np.uint32), np.take_along_axis(logs, ids, axis=-1).astype(np.float32)

    vocabulary = model.config["vocab_size"]
    source = Source("weights", tokenizer_digest(model.tokenizer), "", "", "float32", vocabulary, top_k)
    folder = data / files.LOGPROBS
    folder.mkdir(exist_ok=True)
    writer = SignalWriter(folder, source, {key: row.n_supervised for key, row in rows.items()})
    for shard in writer.unfinished:
        writer.write(shard, {key: score(rows[key]) for key in writer.to_score(shard)})
    writer.finish(f"mlx:{teacher}")
    return folder
