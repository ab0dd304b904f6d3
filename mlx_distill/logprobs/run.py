"""`logprobs`: a local teacher's log-probabilities of every answer token of the prepared rows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_distill import device
from mlx_distill.errors import InputError, Interrupted, MachineError, raise_problems
from mlx_distill.events import Note, Progress, Report, ignore
from mlx_distill.formatting import format_bytes, format_duration, plural
from mlx_distill.logprobs.config import LogprobsConfig, LogprobsResult
from mlx_distill.models.context import TeacherContext, read_context
from mlx_distill.models.load import load_tokenizer
from mlx_distill.models.local_teacher import (
    BATCH_TOKENS,
    LocalTeacher,
    check_teacher,
    count_shared_ids,
    load_local_teacher,
    teacher_folder,
    view,
    weights_digest,
)
from mlx_distill.models.score import make_batches, map_batches, pad
from mlx_distill.models.signal import SHARD_TOKENS, SignalWriter, Source, TeacherSignal, Values, row_key
from mlx_distill.models.tokenize import TokenizedChat, render
from mlx_distill.models.tokenizer_match import template_digest, tokenizer_digest
from mlx_distill.records import Example
from mlx_distill.storage import files
from mlx_distill.storage.atomic import make_folder, only_writer
from mlx_distill.storage.jsonl import read_jsonl

_PREPARE = "Make it with `mlx-distill prepare`."


def run(
    config: LogprobsConfig,
    report: Report = ignore,
    *,
    now: Callable[[], float] = time.perf_counter,
    shard_tokens: int = SHARD_TOKENS,
) -> LogprobsResult:
    """Score the rows that have no stored log-probabilities from this teacher yet.

    After a kill or Ctrl-C, the same call continues with the next shard. Raises InputError for rows, settings or a
    tokenizer that do not fit, MachineError for too little memory or disk, before any work; Interrupted after Ctrl-C.
    """
    if not config.top_k:
        raise InputError(
            "top_k is 0, so there is nothing to store.",
            "Pass --top-k 64, or keep the teacher in memory: `mlx-distill train --objective kd --teacher NAME`.",
        )
    with only_writer(config.out):
        return _Job(config, report, now, shard_tokens).run()


@dataclass
class _Job:
    """One run of the stage."""

    config: LogprobsConfig
    report: Report
    now: Callable[[], float]
    shard_tokens: int

    def run(self) -> LogprobsResult:
        config, started = self.config, self.now()
        folder = teacher_folder(config.teacher, config.model, self.report)
        weight_bytes = check_teacher(folder, config.model)
        context = read_context(config.teacher_context)
        tokenizer = load_tokenizer(folder)
        rows = read_views(config, tokenizer, context)
        source = _source(config, folder, tokenizer, context)
        make_folder(config.out)
        n_tokens = {key: row.n_targets for key, row in rows.items()}
        writer = SignalWriter(config.out, source, n_tokens, self.shard_tokens)
        missing = sum(n_tokens[key] for shard in writer.unfinished for key in writer.to_score(shard))
        self._report_plan(writer, missing, weight_bytes)
        scoring_started = self.now()
        if writer.unfinished:
            self._score(writer, rows, folder, context, missing)
        scoring = self.now() - scoring_started
        manifest = writer.finish(config.teacher)
        return LogprobsResult(
            folder=config.out,
            teacher=config.teacher,
            top_k=source.top_k,
            n_rows=manifest.n_rows,
            n_tokens=manifest.n_tokens,
            n_scored=missing,
            mass=_mean_mass(config.out, list(rows)),
            n_bytes=sum(file.stat().st_size for file in config.out.iterdir()),
            tokens_per_second=round(missing / scoring, 1) if missing else 0.0,
            seconds=round(self.now() - started, 2),
        )

    def _report_plan(self, writer: SignalWriter, missing: int, weight_bytes: int) -> None:
        """Report what the run will take. Raises MachineError if the disk is too small."""
        total, per_token = sum(writer.n_tokens.values()), writer.source.bytes_per_token
        stored = f" ({total - missing:,} are stored already)" if missing < total else ""
        self.report(
            Note(
                f"Teacher {self.config.teacher}: {format_bytes(weight_bytes)} of memory for its weights. "
                f"{plural(missing, 'answer token')} in {plural(len(writer.n_tokens), 'row')} to score{stored}; top "
                f"{writer.source.top_k}: {per_token} bytes a token, {format_bytes(per_token * total)} on the disk."
            )
        )
        needed = per_token * sum(writer.n_tokens[key] for shard in writer.unfinished for key in shard.keys)
        free = shutil.disk_usage(self.config.out).free
        if needed > free:
            raise MachineError(
                f"{self.config.out}: {format_bytes(needed)} are needed, and the disk has {format_bytes(free)} free.",
                f"Free disk space, or lower --top-k (now {self.config.top_k}).",
            )

    def _score(
        self,
        writer: SignalWriter,
        rows: Mapping[str, TokenizedChat],
        folder: Path,
        context: TeacherContext,
        missing: int,
    ) -> None:
        """Score and write the unfinished shards, one after another."""
        shards, n_done, n_written = writer.unfinished, 0, 0
        try:
            teacher = load_local_teacher(self.config.teacher, folder, self.config.model, context, self.report)
            started = self.now()

            def progress(n_tokens: int) -> None:
                nonlocal n_done
                is_first = not n_done
                n_done += n_tokens
                rate = n_done / max(self.now() - started, 1e-9)
                left = format_duration((missing - n_done) / rate)
                if is_first and n_done < missing:
                    self.report(Note(f"About {left} at {rate:,.0f} answer tokens a second."))
                figures = f"{rate:,.0f} tokens/s, {left} left"
                self.report(Progress("logprobs", n_done, missing, "answer tokens", figures))

            for shard in shards:
                missing_rows = {key: rows[key] for key in writer.to_score(shard)}
                writer.write(shard, score_rows(teacher, missing_rows, writer.source.top_k, progress))
                n_written += 1
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"after {n_written} of {plural(len(shards), 'shard')}, which are in {self.config.out}.",
                "To continue, run the same command again.",
            ) from error


def score_rows(
    teacher: LocalTeacher, rows: Mapping[str, TokenizedChat], k: int, progress: Callable[[int], None] = lambda _: None
) -> dict[str, Values]:
    """Return the k most probable tokens at each answer token of the rows, given by key as the teacher sees them.

    `progress` gets the answer tokens of each batch.
    """
    keys = list(rows)
    groups = make_batches([len(rows[key].tokens) for key in keys], BATCH_TOKENS)
    batches = [pad([rows[keys[index]] for index in group]) for group in groups]
    found: dict[str, Values] = {}
    results = map_batches(batches, lambda batch: teacher.top_log_probs(batch, k))
    for group, batch, (ids, log_probs) in zip(groups, batches, results, strict=True):
        all_ids, all_log_probs = np.array(ids, dtype=np.uint32), np.array(log_probs)
        for index, tokens in zip(group, batch.row_slices, strict=True):
            found[keys[index]] = all_ids[tokens], all_log_probs[tokens]
        progress(batch.n_supervised)
    return found


def read_views(config: LogprobsConfig, teacher: TokenizerWrapper, context: TeacherContext) -> dict[str, TokenizedChat]:
    """Return the rows of all splits as the teacher sees them, by key. Equal rows appear once.

    Raises MissingError or InputError for files and rows that cannot be read, with all problems of a file.
    """
    student = load_tokenizer(config.model)
    rows: dict[str, TokenizedChat] = {}
    for name in (files.TRAIN, files.VALID, files.TEST):
        problems = []
        for example in read_jsonl(config.data / name, Example.from_json, _PREPARE):
            try:
                chat = render(student, example)
                seen = view(teacher, context, chat, example.messages, example.context, example.tools)
                rows[row_key(chat, example.context)] = seen
            except InputError as error:
                problems.append(f"{example.id}: {error.message}")
        raise_problems(config.data / name, problems, "Run `mlx-distill prepare` again with this student.")
    if not rows:
        raise InputError(f"{config.data} holds no rows.", "Collect answers, then run `mlx-distill prepare` again.")
    return rows


def _source(config: LogprobsConfig, folder: Path, tokenizer: TokenizerWrapper, context: TeacherContext) -> Source:
    vocabulary = count_shared_ids(tokenizer, folder, config.model)
    return Source(
        weights=weights_digest(folder),
        tokenizer=tokenizer_digest(tokenizer),
        template=template_digest(tokenizer),
        context=context.digest,
        dtype=str(device.prepare().dtype).removeprefix("mlx.core."),
        vocabulary=vocabulary,
        top_k=min(config.top_k, vocabulary),
    )


def _mean_mass(folder: Path, keys: list[str]) -> float:
    """Return the mean over tokens of the probability that is stored."""
    signal = TeacherSignal.open(folder)
    masses = [np.exp(signal.row(key)[1]).sum(axis=1) for key in keys]
    return float(np.concatenate(masses).mean())
