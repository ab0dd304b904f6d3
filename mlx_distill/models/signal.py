"""A teacher's log-probabilities of every answer token of the prepared rows, on the disk.

The folder `data/NAME/logprobs` holds a manifest and shards. A shard is a safetensors file of whole rows:

    row_starts  (R + 1) int64       the first token of each row; the last value is N
    ids         (N, k) uint16       the teacher's k most probable tokens, the most probable first;
                                    uint32 if the vocabulary has more than 65,536 ids
    log_probs   (N, k) float16      their natural log-probabilities, computed in float32
    row_keys    (R, 32) uint8       the key of each row

One token takes 4 k bytes, or 6 k with uint32 (k = 64: 256 or 384). Rounding to float16 changes a distribution by 2e-7
nats of KL. Probability that is not listed belongs to the other tokens together: 1 - sum(exp(log_probs)).

A row is found by its key, a hash of its tokens. So a changed row has no stored values, and equal rows share them. Rows
are sorted by key, and the name of a shard is a hash of its rows and of the source. So an interrupted run continues with
the next shard and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlx_distill.errors import InputError, MissingError
from mlx_distill.formatting import first_line
from mlx_distill.models.safetensors_io import map_arrays, write_arrays
from mlx_distill.models.tokenize import TokenizedChat
from mlx_distill.records import Record, content_hash
from mlx_distill.storage import files
from mlx_distill.storage.atomic import new_file, write_json
from mlx_distill.storage.file_states import file_hash
from mlx_distill.storage.jsonl import read_text

SHARD_TOKENS = 16_384
"""Answer tokens of a shard; a longer row is a shard of its own. An interrupted run loses less than one shard."""
FORMAT = 1
_AGAIN = "Make it again with `mlx-distill logprobs`."

Values = tuple[NDArray[np.uint32], NDArray[np.float32]]
"""The ids (n, k) and the log-probabilities (n, k) of the n answer tokens of a row, end tokens included, in order."""


class Source(Record, frozen=True):
    """Everything that the stored values depend on, besides the rows. Text fields are hashes of the content."""

    weights: str
    tokenizer: str
    template: str
    context: str
    """The system message and the examples that the teacher sees. A row's own document is part of its key."""
    dtype: str
    """The type that the teacher computes in. Its head computes in float32."""
    vocabulary: Annotated[int, msgspec.Meta(ge=1)]
    """The number of ids over which the probabilities sum to 1."""
    top_k: Annotated[int, msgspec.Meta(ge=1)]

    @property
    def digest(self) -> str:
        return content_hash(self.to_json())

    @property
    def id_type(self) -> type[np.unsignedinteger[Any]]:
        return np.uint16 if self.vocabulary <= 1 << 16 else np.uint32

    @property
    def bytes_per_token(self) -> int:
        return self.top_k * (np.dtype(self.id_type).itemsize + 2)


class ShardInfo(Record, frozen=True):
    """One shard in the manifest."""

    file: str
    sha256: str
    n_rows: int
    n_tokens: int


class SignalManifest(Record, frozen=True):
    """The content of a complete folder."""

    format: int
    teacher: str
    """The teacher as the user named it."""
    source: Source
    rows: str
    """A hash of the keys of all rows."""
    n_rows: int
    n_tokens: int
    shards: tuple[ShardInfo, ...]


def row_key(row: TokenizedChat, document: str = "") -> str:
    """Return the key of a row: a hash of its tokens, its answer mask and the document that the teacher sees."""
    return content_hash([row.tokens, row.mask, document])


@dataclass(frozen=True)
class _Shard:
    """The mapped arrays of one file."""

    path: Path
    keys: tuple[str, ...]
    starts: NDArray[np.int64]
    ids: NDArray[np.unsignedinteger[Any]]
    log_probs: NDArray[np.float16]

    @classmethod
    def open(cls, path: Path, source: Source) -> _Shard:
        """Map a shard and check that its arrays fit together. Raises InputError."""
        arrays, metadata = map_arrays(path)
        try:
            starts, ids, log_probs = arrays["row_starts"], arrays["ids"], arrays["log_probs"]
            keys = arrays["row_keys"]
            fits = (
                metadata.get("source") == source.digest
                and ids.dtype == source.id_type
                and ids.shape == log_probs.shape == (int(starts[-1]), source.top_k)
                and [array.dtype.str for array in (log_probs, starts, keys)] == ["<f2", "<i8", "|u1"]
                and keys.shape == (len(starts) - 1, 32)
                and starts[0] == 0
                and bool(np.all(np.diff(starts) >= 0))
            )
        except (KeyError, IndexError, TypeError, ValueError):
            fits = False
        if not fits:
            raise InputError(f"{path}: not a shard of these log-probabilities.", _AGAIN)
        return cls(path, tuple(row.tobytes().hex() for row in keys), starts, ids, log_probs)

    def row(self, number: int, vocabulary: int) -> Values:
        """Read one row. Raises InputError if its values cannot be ids and log-probabilities."""
        place = slice(int(self.starts[number]), int(self.starts[number + 1]))
        ids, log_probs = self.ids[place].astype(np.uint32), self.log_probs[place].astype(np.float32)
        if not (np.all(ids < vocabulary) and np.all(log_probs <= 0) and np.all(np.isfinite(log_probs))):
            raise InputError(f"{self.path}: row {number} holds values that are not log-probabilities.", _AGAIN)
        return ids, log_probs


class TeacherSignal:
    """The stored log-probabilities of a folder, mapped into memory: only the rows that are read take memory."""

    def __init__(self, folder: Path, manifest: SignalManifest, shards: Sequence[_Shard]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._places = {key: (shard, number) for shard in shards for number, key in enumerate(shard.keys)}

    @classmethod
    def open(cls, folder: Path) -> TeacherSignal:
        """Open a complete folder. Raises MissingError if there is none, InputError if its files are broken."""
        manifest = read_manifest(folder)
        shards = []
        for info in manifest.shards:
            shard = _Shard.open(folder / info.file, manifest.source)
            if (len(shard.keys), len(shard.ids)) != (info.n_rows, info.n_tokens):
                raise InputError(f"{shard.path}: not the shard that the manifest names.", _AGAIN)
            shards.append(shard)
        return cls(folder, manifest, shards)

    @property
    def source(self) -> Source:
        return self.manifest.source

    def row(self, key: str) -> Values:
        """Return the ids (n, k) uint32 and log-probabilities (n, k) float32 of a row's n answer tokens, in order.

        Raises InputError if the row has no stored values, or broken ones.
        """
        shard, number = self._place(key, key)
        return shard.row(number, self.source.vocabulary)

    def check(self, key: str, n_tokens: int, name: str) -> None:
        """Raise InputError if there are no values of the row, or not those of `n_tokens` answer tokens.

        `name` is the row's id for the error. The values are not read.
        """
        shard, number = self._place(key, name)
        stored = int(shard.starts[number + 1]) - int(shard.starts[number])
        if stored != n_tokens:
            raise InputError(f"{shard.path}: {stored} answer tokens of row {name!r}, which has {n_tokens}.", _AGAIN)

    def _place(self, key: str, name: str) -> tuple[_Shard, int]:
        if key not in self._places:
            raise InputError(
                f"{self.folder} has no log-probabilities of row {name!r}: it is new, or its tokens changed.",
                "Run `mlx-distill logprobs`: it scores only what is missing.",
            )
        return self._places[key]


def read_manifest(folder: Path) -> SignalManifest:
    """Read the manifest of a folder. Raises MissingError if there is none, InputError if it is broken."""
    file = folder / files.LOGPROBS_MANIFEST
    try:
        manifest = msgspec.json.decode(read_text(file), type=SignalManifest)
    except MissingError as error:
        raise MissingError(
            f"{folder} holds no complete log-probabilities.", "Make them with `mlx-distill logprobs`."
        ) from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not a manifest of log-probabilities ({first_line(error)}).", _AGAIN) from error
    if manifest.format != FORMAT or any(Path(shard.file).name != shard.file for shard in manifest.shards):
        raise InputError(f"{file}: made by another version of mlx-distill.", _AGAIN)
    return manifest


@dataclass(frozen=True)
class PlannedShard:
    """The rows of one shard, sorted by key."""

    file: str
    keys: tuple[str, ...]


class SignalWriter:
    """Writes the shards of a folder. It takes over the values of rows that are already stored from the same source.

    Usage: for each shard in `unfinished`, score the rows in `to_score(shard)` and pass their values to `write`;
    then `finish`. The caller holds the folder's lock (`only_writer`).
    """

    def __init__(
        self, folder: Path, source: Source, n_tokens: Mapping[str, int], shard_tokens: int = SHARD_TOKENS
    ) -> None:
        """Plan the shards of the rows, given by key with their number of answer tokens."""
        self.folder = folder
        self.source = source
        self.n_tokens = dict(sorted(n_tokens.items()))
        self.shards = tuple(_plan(self.n_tokens, source, shard_tokens))
        self._written: set[str] = set()
        self._stored: dict[str, tuple[_Shard, int]] = {}
        for shard in self._open_shards():
            self._add(shard)

    @property
    def unfinished(self) -> list[PlannedShard]:
        """The shards that are not written yet."""
        return [shard for shard in self.shards if shard.file not in self._written]

    def to_score(self, shard: PlannedShard) -> list[str]:
        """Return the keys of the rows of a shard without stored values."""
        return [key for key in shard.keys if key not in self._stored]

    def write(self, shard: PlannedShard, scored: Mapping[str, Values]) -> None:
        """Write a shard from the values of the scored rows and the stored values of the others."""
        values = [scored[key] if key in scored else self._read(key) for key in shard.keys]
        starts = np.cumsum([0, *(len(ids) for ids, _ in values)], dtype=np.int64)
        floor = float(np.finfo(np.float16).min)
        arrays: dict[str, NDArray[Any]] = {
            "row_starts": starts,
            "ids": np.concatenate([ids for ids, _ in values]).astype(self.source.id_type),
            "log_probs": np.maximum(np.concatenate([found for _, found in values]), floor).astype(np.float16),
            "row_keys": np.frombuffer(bytes.fromhex("".join(shard.keys)), np.uint8).reshape(-1, 32),
        }
        expected = [self.n_tokens[key] for key in shard.keys]
        if np.diff(starts).tolist() != expected or arrays["ids"].shape != arrays["log_probs"].shape:
            raise ValueError(f"{np.diff(starts).tolist()} scored tokens a row, expected {expected}")
        path = self.folder / shard.file
        with new_file(path, replace=True) as scratch:
            write_arrays(scratch, arrays, {"source": self.source.digest})
        self._add(_Shard.open(path, self.source))

    def finish(self, teacher: str) -> SignalManifest:
        """Write the manifest, then remove the shards of earlier rows or sources."""
        counts = [sum(self.n_tokens[key] for key in shard.keys) for shard in self.shards]
        manifest = SignalManifest(
            format=FORMAT,
            teacher=teacher,
            source=self.source,
            rows=content_hash(list(self.n_tokens)),
            n_rows=len(self.n_tokens),
            n_tokens=sum(counts),
            shards=tuple(
                ShardInfo(shard.file, file_hash(self.folder / shard.file), len(shard.keys), n_tokens)
                for shard, n_tokens in zip(self.shards, counts, strict=True)
            ),
        )
        write_json(self.folder / files.LOGPROBS_MANIFEST, manifest)
        current = {shard.file for shard in self.shards}
        for file in self.folder.iterdir():  # also what a kill left of a shard
            if file.match(files.LOGPROBS_SHARDS + "*") and file.name not in current:
                file.unlink()
        return manifest

    def _open_shards(self) -> Iterator[_Shard]:
        """Open the shards from the same source. What is broken, or differs from its hash in a manifest, is ignored."""
        try:
            hashes = {shard.file: shard.sha256 for shard in read_manifest(self.folder).shards}
        except (InputError, MissingError):
            hashes = {}
        for path in sorted(self.folder.glob(files.LOGPROBS_SHARDS)):
            if path.name.startswith("."):
                continue
            try:
                shard = _Shard.open(path, self.source)
                values = {key: shard.row(number, self.source.vocabulary) for number, key in enumerate(shard.keys)}
            except InputError:
                continue
            if any(len(ids) != self.n_tokens.get(key, len(ids)) for key, (ids, _) in values.items()):
                continue
            recorded = hashes.get(path.name)
            if not recorded or recorded == file_hash(path):
                yield shard

    def _add(self, shard: _Shard) -> None:
        self._written.add(shard.path.name)
        self._stored |= {key: (shard, number) for number, key in enumerate(shard.keys)}

    def _read(self, key: str) -> Values:
        shard, number = self._stored[key]
        return shard.row(number, self.source.vocabulary)


def _plan(n_tokens: Mapping[str, int], source: Source, shard_tokens: int) -> Iterator[PlannedShard]:
    """Cut the sorted rows into shards of at most `shard_tokens`."""
    keys: list[str] = []
    total = 0
    for key, count in n_tokens.items():
        if keys and total + count > shard_tokens:
            yield _planned(keys, source)
            keys, total = [], 0
        keys.append(key)
        total += count
    if keys:
        yield _planned(keys, source)


def _planned(keys: Sequence[str], source: Source) -> PlannedShard:
    return PlannedShard(f"{content_hash([source.digest, *keys])[:16]}.safetensors", tuple(keys))
