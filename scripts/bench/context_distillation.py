#!/usr/bin/env python3
"""Compare objectives at context distillation: the sample student learns to answer as it does with three examples.

    python scripts/bench/context_distillation.py --quick         # two objectives, two learning rates, one seed
    python scripts/bench/context_distillation.py --minutes 60    # all; the journal continues where it stopped
    python scripts/bench/context_distillation.py --table         # print the journal and compute nothing

The teacher is the student's own weights with three sample dialogues before the question; the student sees the question
only. Every objective gets the same answers of the teacher (one or more a prompt, drawn at temperature 1, cut off after
some tokens), the same rows in a step, and the same number of steps; on-policy gets the prompts only, and writes as many
tokens at most. The figure is KL(teacher || student) over the whole vocabulary at each token of the teacher's answers to
prompts of unseen families, in nats a token, after the last step. Intervals resample families. The written answers of
the sample are a second text: their loss with the dialogues in view is what the context gives.

--quick fails if kd's KL, at its better rate, is not below 0.6 of the base's and 0.85 of sft's at its own.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlx_distill import cpu, device
from mlx_distill.compare.statistics import bootstrap, sum_by_family
from mlx_distill.errors import DistillError
from mlx_distill.events import Event, Note
from mlx_distill.models.context import ContextConfig, read_context, with_context
from mlx_distill.records import (
    STUDENT_SYSTEM,
    Example,
    Message,
    Prompt,
    TeacherRecord,
    build_messages,
    content_hash,
)
from mlx_distill.storage import files
from mlx_distill.storage.atomic import jsonl_text, write_text
from mlx_distill.storage.journal import Journal
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.storage.package_data import package_data_path
from mlx_distill.train import TrainConfig

DIALOGUES = ("sql-top-per-group", "log-errors-tail", "concept-idempotency")
"""Sample dialogues that the teacher sees. Their families are not among the training prompts."""
CUT_OFF = "cut off"
"""Category of an answer that did not end: it has no end token to learn."""
BASE = "base"
OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "sft": {"objective": "sft"},
    "kd": {"objective": "kd"},
    "kd, whole vocabulary": {"objective": "kd", "teacher": "self"},
    "on-policy": {"objective": "on-policy", "teacher": "self", "divergence": "reverse"},
}
"""The settings of `train` for each objective that is compared."""
BELOW_BASE, BELOW_SFT = 0.6, 0.85


@dataclass(frozen=True)
class Setup:
    """The prompts and the training that all objectives share. It identifies lines of the journal."""

    train_prompts: int = 48
    valid_prompts: int = 6
    test_prompts: int = 25
    max_tokens: int = 96
    """Length limit of an answer."""
    epochs: int = 2
    batch_size: int = 4
    top_k: int = 64
    schedule: str = "constant"
    score_written: bool = True
    """Measure the loss on the written answers, too."""


@dataclass(frozen=True)
class Run:
    """One training."""

    objective: str
    learning_rate: float
    seed: int = 0
    samples: int = 1
    """Answers of the teacher to each prompt."""


@dataclass(frozen=True)
class Plan:
    """A set-up and its runs, the most telling first."""

    setup: Setup
    runs: tuple[Run, ...]


QUICK = Plan(
    Setup(train_prompts=24, valid_prompts=2, test_prompts=12, max_tokens=64, batch_size=2, score_written=False),
    tuple(Run(objective, rate) for rate in (3e-4, 1e-4) for objective in ("kd", "sft")),
)
RATES = (1e-4, 3e-4, 3e-5, 1e-3, 1e-5)
FULL = Plan(
    Setup(),
    (
        *(Run(objective, rate, seed) for seed in range(3) for rate in RATES for objective in ("sft", "kd")),
        *(Run("sft", rate, samples=samples) for samples in (2, 4) for rate in RATES[:3]),
        *(Run(objective, rate) for rate in RATES[:2] for objective in ("on-policy", "kd, whole vocabulary")),
    ),
)


@dataclass
class Bench:
    """The work folder with model, context and teacher's answers, and the journal of results."""

    setup: Setup
    work: Path
    journal: Path
    model: Path = field(init=False)

    def __post_init__(self) -> None:
        self.work = self.work / content_hash(asdict(self.setup))[:8]
        self.work.mkdir(parents=True, exist_ok=True)
        self.context = ContextConfig(system="", examples=self.work / "dialogues.jsonl")

    def lines(self) -> list[dict[str, Any]]:
        """Return the results of this set-up."""
        every = read_jsonl(self.journal, lambda data: data) if self.journal.exists() else []
        return [line for line in every if isinstance(line, dict) and line["setup"] == asdict(self.setup)]

    def find(self, run: Run | None) -> dict[str, Any] | None:
        """Return the result of a run; None stands for the base model."""
        wanted = asdict(run) if run else {"objective": BASE}
        return next((line for line in self.lines() if line["run"] == wanted), None)

    def compute(self, run: Run | None) -> dict[str, Any]:
        """Train, measure, and write the result."""
        started = time.perf_counter()
        adapter = self.train(run) if run else None
        trained = time.perf_counter()
        result = {
            "setup": asdict(self.setup),
            "run": asdict(run) if run else {"objective": BASE},
            "teacher_tokens": self.teacher_tokens(run.samples) if run else 0,
            "train_seconds": round(trained - started, 1),
            **self.measure(adapter),
            "processor": device.cpu_name(),
            "cores": cpu.cores(),
            "versions": device.versions(),
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with Journal(self.journal) as journal:
            journal.append(result)
        return result

    def prepare(self, model: Path | None) -> None:
        """Convert the sample student, and write the dialogues. Both are kept."""
        if model is None:
            from mlx_distill.convert import ConvertConfig
            from mlx_distill.convert import run as convert

            model = self.work.parent / "SmolLM2-135M-Instruct"
            if not model.exists():
                convert.run(ConvertConfig(source="sample", out=model))
        self.model = model
        records = {record.prompt_id: record for record in _written()}
        dialogues = [_example(records[name], records[name].answer) for name in DIALOGUES]
        write_text(self.work / "dialogues.jsonl", jsonl_text(row.to_json() for row in dialogues))

    def teacher_rows(self, split: str, sample: int = 0) -> list[Example]:
        """Return the teacher's answers to the prompts of a split. They are drawn once."""
        from mlx_distill.models.generate import generate_batch
        from mlx_distill.models.load import load_student
        from mlx_distill.models.tokenize import render_prompt

        file = self.work / f"{split}-{sample}.jsonl"
        if not file.exists():
            student, context = load_student(self.model), read_context(self.context)
            prompts = _prompts(split, getattr(self.setup, f"{split}_prompts"))
            asked = [
                render_prompt(student.tokenizer, with_context(context, build_messages(prompt.text, STUDENT_SYSTEM), ""))
                for prompt in prompts
            ]
            seed = int(content_hash([split, sample])[:8], 16)
            answers = generate_batch(
                student, asked, max_tokens=self.setup.max_tokens, temperature=1.0, seed=seed, report=_say
            )
            rows = [
                _example(prompt, answer.text, "" if answer.finished else CUT_OFF)
                for prompt, answer in zip(prompts, answers, strict=True)
                if answer.text.strip()
            ]
            write_text(file, jsonl_text(row.to_json() for row in rows))
        return read_jsonl(file, Example.from_json)

    def data(self, samples: int) -> Path:
        """Write the rows and the teacher's log-probabilities of a training; return their folder."""
        from mlx_distill.logprobs.run import score_rows
        from mlx_distill.models.load import load_student
        from mlx_distill.models.local_teacher import open_local_teacher
        from mlx_distill.models.signal import SignalWriter, Source, row_key
        from mlx_distill.models.tokenizer_match import tokenizer_digest

        folder = self.work / f"{samples}-samples"
        if (folder / files.LOGPROBS / files.LOGPROBS_MANIFEST).exists():
            return folder
        rows = {
            files.TRAIN: [row for sample in range(samples) for row in self.teacher_rows("train", sample)],
            files.VALID: self.teacher_rows("valid"),
        }
        (folder / files.LOGPROBS).mkdir(parents=True, exist_ok=True)
        for name, examples in rows.items():
            write_text(folder / name, jsonl_text(row.to_json() for row in examples))
        student = load_student(self.model)
        teacher = open_local_teacher("self", student, read_context(self.context))
        views = {}
        for example in (example for examples in rows.values() for example in examples):
            row = _tokenize(student, example)
            views[row_key(row)] = teacher.view(row, example.messages)
        digest = tokenizer_digest(student.tokenizer)
        source = Source("sample", digest, "", "dialogues", "float32", teacher.vocabulary, self.setup.top_k)
        writer = SignalWriter(folder / files.LOGPROBS, source, {key: row.n_supervised for key, row in views.items()})
        for shard in writer.unfinished:
            writer.write(shard, score_rows(teacher, {key: views[key] for key in writer.to_score(shard)}, source.top_k))
        writer.finish("self")
        return folder

    def teacher_tokens(self, samples: int) -> int:
        """Return the supervised tokens of the training rows."""
        from mlx_distill.models.load import load_tokenizer

        student = argparse.Namespace(tokenizer=load_tokenizer(self.model))
        return sum(
            _tokenize(student, row).n_supervised
            for sample in range(samples)
            for row in self.teacher_rows("train", sample)
        )

    def train(self, run: Run) -> Path:
        """Train an adapter and return the folder of the last one. A killed training resumes."""
        from mlx_distill.train.run import run as train

        data = self.data(run.samples)
        adapter = self.work / "adapters" / content_hash(asdict(run))[:12]
        if not (adapter / files.TRAINING_RUN).exists():
            resume = (adapter / files.CHECKPOINT).exists()
            own = dict(OBJECTIVES[run.objective])
            if run.objective == "on-policy":
                own["rollout_tokens"] = self.setup.max_tokens
            settings = TrainConfig(
                model=self.model,
                data=data,
                adapter=adapter,
                epochs=self.setup.epochs,
                batch_size=self.setup.batch_size,
                learning_rate=run.learning_rate,
                schedule=self.setup.schedule,  # type: ignore[arg-type]
                seed=run.seed,
                eval_every=1_000_000,  # at the end only
                resume=resume,
                force=not resume,
                teacher_context=self.context,
                **own,
            )
            train(settings, _say, objectives=_objectives())
            device.release_memory()
        return adapter / "last"

    def measure(self, adapter: Path | None) -> dict[str, Any]:
        """Return KL and tokens of each test row with their families, and the loss on the written answers."""
        import mlx.core as mx

        from mlx_distill.models.adapter import load_adapter
        from mlx_distill.models.load import load_student
        from mlx_distill.models.score import score
        from mlx_distill.train.divergences import Divergence, Sides, TeacherHead, token_divergences
        from mlx_distill.train.step import scalar

        examples = self.teacher_rows("test")
        batches, teacher = self._test_batches(examples)
        student = load_student(self.model, dtype=mx.float32)
        if adapter:
            load_adapter(student, adapter)
        kl = []
        for batch in batches:
            hidden = batch.gather(student.hidden(batch.inputs))
            side = TeacherHead(teacher.head, batch.teacher_hidden)
            figures = token_divergences(
                Divergence(), Sides(student.head, hidden, batch.targets, side, teacher.vocabulary)
            )
            kl.append(scalar(figures.loss.sum()))
        written = [_tokenize(student, example) for example in _written_examples(examples)]
        return {
            "families": [example.family for example in examples],
            "tokens": [batch.n_supervised for batch in batches],
            "kl": kl,
            "written_loss": score(student, written).loss if self.setup.score_written else None,
        }

    def _test_batches(self, examples: Sequence[Example]) -> tuple[list[Any], Any]:
        """Return a batch for each test row with the teacher's hidden states, and the teacher. Computed once."""
        from mlx_distill.models.load import load_student

        if not hasattr(self, "_tested"):
            settings = TrainConfig(
                self.model, self.work, self.work, objective="kd", teacher="self", teacher_context=self.context
            )
            objective: Any = _objectives()["kd"](settings, load_student(self.model))
            rows = [objective.tokenize(example) for example in examples]
            self._tested = [objective.make_batch([row]) for row in rows], objective.teacher
        return self._tested


def _objectives() -> Mapping[str, Any]:
    """Return the objectives of `train` without the end token of answers that were cut off."""
    from mlx_distill.train.objectives.base import Objective
    from mlx_distill.train.objectives.kd import LiveKd, StoredKd
    from mlx_distill.train.objectives.on_policy import OnPolicy
    from mlx_distill.train.objectives.sft import Sft

    class CutOff(Objective):
        def tokenize(self, example: Example) -> Any:
            return _tokenize(self.student, example)

    class CutSft(Sft, CutOff): ...

    class CutStoredKd(StoredKd, CutOff): ...

    class CutLiveKd(LiveKd, CutOff): ...

    class CutOnPolicy(OnPolicy, CutOff): ...

    return {
        "sft": CutSft,
        "kd": lambda config, student: (CutLiveKd if config.teacher else CutStoredKd)(config, student),
        "on-policy": CutOnPolicy,
    }


def _tokenize(student: Any, example: Example) -> Any:
    """Return the student's tokens. An answer that was cut off has no end token."""
    from mlx_distill.models.tokenize import TokenizedChat, render

    row = render(student.tokenizer, example.messages)
    return TokenizedChat(row.tokens[:-1], row.mask[:-1]) if example.category == CUT_OFF else row


def _prompts(split: str, count: int) -> list[Prompt]:
    """Return prompts of a split, of all its families in turn."""
    families: dict[str, list[Prompt]] = {}
    banned = {record.family for record in _written() if record.prompt_id in DIALOGUES}
    for prompt in read_jsonl(package_data_path("prompts.jsonl"), Prompt.from_json):
        if prompt.split == split and prompt.family not in banned:
            families.setdefault(prompt.family, []).append(prompt)
    draw = random.Random(split)
    for prompts in families.values():
        draw.shuffle(prompts)
    turns = [prompts[turn] for turn in range(20) for prompts in families.values() if turn < len(prompts)]
    return turns[:count]


def _written() -> list[TeacherRecord]:
    """Return the written answers of the sample."""
    return read_jsonl(package_data_path("sample") / files.TEACHER_DATA, TeacherRecord.from_json)


def _written_examples(examples: Sequence[Example]) -> list[Example]:
    """Return the written answers to the same prompts."""
    records = {record.prompt_id: record for record in _written()}
    return [_example(records[example.id], records[example.id].answer) for example in examples]


def _example(prompt: Prompt | TeacherRecord, answer: str, category: str = "") -> Example:
    text, name = (prompt.text, prompt.id) if isinstance(prompt, Prompt) else (prompt.prompt_text, prompt.prompt_id)
    messages = (*build_messages(text, STUDENT_SYSTEM), Message("assistant", answer))
    return Example(messages, name, prompt.family, category or "complete")


def _say(event: Event) -> None:
    if isinstance(event, Note):
        print(f"  {event.text}", file=sys.stderr, flush=True)


def estimate(lines: Sequence[Mapping[str, Any]]) -> Any:
    """Return KL a token over the runs of several seeds, with an interval over families."""
    families = [family for line in lines for family in line["families"]]
    sums = [pair for line in lines for pair in zip(line["tokens"], line["kl"], strict=True)]
    (found,) = bootstrap(sum_by_family(families, sums), lambda totals: totals[..., 1:] / totals[..., :1], 0)
    return found


def table(bench: Bench) -> Iterator[str]:
    """Yield a line for each objective, number of answers and learning rate: KL over all seeds."""
    lines = bench.lines()
    base = next((line for line in lines if line["run"]["objective"] == BASE), None)
    if base is None:
        return
    before = estimate([base]).value
    yield "| objective | teacher tokens | rate | seeds | KL to the teacher | / base | loss of written answers |"
    yield "|---|---|---|---|---|---|---|"
    yield f"| base | | | | {before:.4f} | 1 | {_mean_written([base])} |"
    groups: dict[tuple[str, int, float], list[dict[str, Any]]] = {}
    for line in lines:
        run = line["run"]
        if run["objective"] != BASE:
            groups.setdefault((run["objective"], run["samples"], run["learning_rate"]), []).append(line)
    for (objective, _, rate), found in sorted(groups.items()):
        kl = estimate(found)
        interval = f" ({kl.low:.4f} to {kl.high:.4f})" if kl.low is not None else ""
        yield (
            f"| {objective} | {found[0]['teacher_tokens']:,} | {rate:g} | {len(found)} | {kl.value:.4f}{interval} | "
            f"{kl.value / before:.2f} | {_mean_written(found)} |"
        )


def _mean_written(lines: Sequence[Mapping[str, Any]]) -> str:
    losses = [line["written_loss"] for line in lines if line["written_loss"] is not None]
    return f"{np.mean(losses):.3f}" if losses else ""


def best_ratios(bench: Bench) -> dict[str, float]:
    """Return each objective's KL at its better rate over the base's, with one answer a prompt."""
    base = estimate([line for line in bench.lines() if line["run"]["objective"] == BASE]).value
    ratios: dict[str, dict[float, list[dict[str, Any]]]] = {}
    for line in bench.lines():
        if line["run"].get("samples") == 1:
            rates = ratios.setdefault(line["run"]["objective"], {})
            rates.setdefault(line["run"]["learning_rate"], []).append(line)
    return {name: min(estimate(found).value for found in rates.values()) / base for name, rates in ratios.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small set-up with a pass mark, for CI")
    parser.add_argument("--work", type=Path, default=Path("reports/context-distillation"), help="folder for all files")
    parser.add_argument("--journal", type=Path, default=Path(__file__).with_suffix(".jsonl"), help="results")
    parser.add_argument("--model", type=Path, help="the converted sample student; default: convert it")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no further run after this time")
    parser.add_argument("--table", action="store_true", help="print the journal and compute nothing")
    parser.add_argument("--json", action="store_true", help="print the ratios to the base as one JSON object")
    options = parser.parse_args(arguments)
    plan = QUICK if options.quick else FULL
    bench = Bench(plan.setup, options.work, options.journal)
    started = time.perf_counter()
    try:
        if not options.table:
            device.configure_process()
            bench.prepare(options.model)
            for run in (None, *plan.runs):
                if not bench.find(run) and time.perf_counter() - started < 60 * options.minutes:
                    print(run or "base", file=sys.stderr, flush=True)
                    bench.compute(run)
    except DistillError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    ratios = best_ratios(bench)
    if options.json:
        print(json.dumps(ratios))
    else:
        print("\n".join(table(bench)))
    if options.quick and not (ratios["kd"] < BELOW_BASE and ratios["kd"] < BELOW_SFT * ratios["sft"]):
        print(f"kd is not below {BELOW_BASE} of base and {BELOW_SFT} of sft: {ratios}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
