"""The training loop: steps, evaluations, checkpoints, early stopping and the time budget."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import msgspec
from mlx.utils import tree_flatten

from mlx_distill.config import to_plain
from mlx_distill.errors import Interrupted, MachineError
from mlx_distill.events import Note, Progress, Report, Warning
from mlx_distill.formatting import format_percent
from mlx_distill.storage import files
from mlx_distill.storage.atomic import write_text
from mlx_distill.train.checkpoint import (
    LAST,
    Evaluation,
    TrainState,
    load_checkpoint,
    model_digest,
    save_adapter,
    save_checkpoint,
)
from mlx_distill.train.config import TrainResult
from mlx_distill.train.data import Rows, epoch_batches
from mlx_distill.train.memory_plan import MemoryPlan
from mlx_distill.train.schedule import TimeBudget, learning_rate
from mlx_distill.train.signals import StopRequest
from mlx_distill.train.step import StepMetrics, TrainStep
from mlx_distill.training_run import TrainingRun, drop_metrics_after

RESUME_MAY_CHANGE = {
    *("model", "data", "adapter", "preset", "resume", "force", "checkpoint_every"),  # do not decide the result
    "micro_batch_tokens",  # decides only the last digits
}
"""Settings that may differ when a run resumes. Model and rows are compared by their content."""


@dataclass
class Trainer:
    """Trains on the rows of a `TrainStep`, evaluates on `valid_rows`, and writes the adapter folder."""

    train_step: TrainStep
    valid_rows: Rows
    plan: MemoryPlan
    adapter_config: Mapping[str, Any]
    budget: TimeBudget
    stop: StopRequest
    report: Report
    state: TrainState = field(init=False)

    def __post_init__(self) -> None:
        self.objective = self.train_step.objective
        self.config = self.objective.config
        self.model = self.objective.student.model
        self.train_rows = self.train_step.rows
        self.metrics_file = self.config.adapter / files.METRICS
        self.steps_per_epoch = math.ceil(len(self.train_rows) / self.config.batch_size)
        self.total_steps = self.steps_per_epoch * self.config.epochs

    def train(self) -> TrainResult:
        """Start or resume, take the steps, and write the last adapter and run.json."""
        settings = self._decisive_settings()
        for leftover in self.config.adapter.glob(".*.safetensors.*"):  # of a write that a kill cut off
            leftover.unlink()
        if self.config.resume:
            self._resume(settings)
        else:
            self._start(settings)
        mx.reset_peak_memory()
        stopped = self._take_steps()
        save_adapter(self.config.adapter / LAST, self.model, self.adapter_config, f"last, step {self.state.step}")
        result = self._result(stopped)
        TrainingRun(to_plain(self.config), to_plain(result)).save(self.config.adapter)
        return result

    def _decisive_settings(self) -> dict[str, Any]:
        """Return the settings, and the hashes of rows, model and teacher, that must be equal when a run resumes."""
        settings = {name: value for name, value in to_plain(self.config).items() if name not in RESUME_MAY_CHANGE}
        settings |= {"train rows": self.train_rows.digest, "valid rows": self.valid_rows.digest}
        settings |= {"weights of the model": model_digest(self.config.model), **self.objective.source}
        as_in_checkpoint: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(settings))
        return as_in_checkpoint

    def _start(self, settings: dict[str, Any]) -> None:
        """Evaluate the untrained student and write the first checkpoint."""
        folder = self.config.adapter
        write_text(self.metrics_file, "")
        (folder / files.TRAINING_RUN).unlink(missing_ok=True)
        (folder / files.CHECKPOINT).unlink(missing_ok=True)
        self.train_step.optimizer.init(self.model.trainable_parameters())
        self._report_plan()
        before = self._measure(step=0)
        self.state = TrainState(settings, before=before, best=before)
        self._write_metrics(None, before)
        self._save_checkpoint()
        self._save_best()

    def _resume(self, settings: dict[str, Any]) -> None:
        """Load the last checkpoint, and drop what was written after it."""
        folder = self.config.adapter
        self.state = load_checkpoint(folder, self.model, self.train_step.optimizer, settings)
        self.budget.add_earlier(self.state.seconds)
        drop_metrics_after(self.state.step, folder)
        if self.state.best.step == self.state.step:
            self._save_best()  # a kill right after the checkpoint left it out
        self._report_plan()
        self.report(Note(f"Continuing after step {self.state.step} of {self.total_steps}."))

    def _take_steps(self) -> str:
        """Take the remaining steps. Return why training ended."""
        config, state = self.config, self.state
        while state.epoch < config.epochs:
            batches = epoch_batches(self.train_rows.lengths, config.batch_size, config.seed, state.epoch)
            for batch in batches[state.position :]:
                metrics = self._step(batch)
                state.advance(metrics.supervised_tokens, metrics.step_seconds, len(batches))
                self._report_step(metrics)
                stopped = self._after_step(metrics)
                if stopped:
                    return stopped
        return "finished"

    def _step(self, batch: Sequence[int]) -> StepMetrics:
        """Take the next step, and check that its loss is finite."""
        config, state = self.config, self.state
        rate = learning_rate(config, self.budget.progress(state.step, self.total_steps))
        metrics = self.train_step.step(batch, rate, state.step + 1)
        if not math.isfinite(metrics.train_loss) or not math.isfinite(metrics.gradient_norm):
            rows = ", ".join(repr(self.train_rows.ids[index]) for index in sorted(batch))
            raise MachineError(
                f"Step {state.step + 1}: the loss is {metrics.train_loss} and the gradient norm "
                f"{metrics.gradient_norm} (rows {rows} of train.jsonl).",
                f"{config.adapter} holds the best adapter so far (step {state.best.step}) and the last checkpoint. "
                "Lower --learning-rate, or look at those rows.",
            )
        return metrics

    def _report_step(self, metrics: StepMetrics) -> None:
        figures = (
            f"loss {metrics.train_loss:.3f}  accuracy {format_percent(metrics.train_accuracy)}  "
            f"{metrics.supervised_tokens_per_second:.0f} answer tokens/s"
        )
        if metrics.figures:  # of rollouts: there the cross-entropy estimates the student's entropy
            more = {"cross-entropy": metrics.train_cross_entropy, **metrics.figures}
            figures += "".join(f"  {name.replace('_', ' ')} {value:.3g}" for name, value in more.items())
        self.report(Progress("train", self.state.step, self.total_steps, "steps", figures))

    def _after_step(self, metrics: StepMetrics) -> str:
        """Evaluate, write metrics and save, as far as due. Return why training must end, or an empty string.

        Raises Interrupted, with a checkpoint, after a signal.
        """
        config, state = self.config, self.state
        state.peak_bytes = max(state.peak_bytes, mx.get_peak_memory())
        is_due = state.step % config.eval_every == 0 if config.eval_every else state.between_epochs
        out_of_time = self._is_out_of_time()
        evaluation = None
        if is_due or out_of_time or state.step == self.total_steps:
            evaluation = self._evaluate()
            out_of_time = out_of_time or self._is_out_of_time()  # the evaluation takes time too
        self._write_metrics(metrics, evaluation)
        if state.between_epochs or self.stop.signal or state.step % config.checkpoint_every == 0:
            self._save_checkpoint()
        if self.stop.signal:
            raise Interrupted(
                f"after step {state.step} of {self.total_steps}, with a checkpoint in {config.adapter}.",
                "To continue, run the same command with --resume.",
                128 + self.stop.signal,
            )
        if out_of_time:
            return "time budget"
        return "early stop" if config.patience and state.evals_without_improvement >= config.patience else ""

    def _is_out_of_time(self) -> bool:
        step_seconds = self.state.step_seconds / self.state.step
        return self.state.step < self.total_steps and not self.budget.has_room(step_seconds)

    def _evaluate(self) -> Evaluation:
        """Evaluate on valid.jsonl and keep the adapter if it is the best so far."""
        evaluation = self._measure(self.state.step)
        if evaluation.is_better_than(self.state.best):
            self.state.best, self.state.evals_without_improvement = evaluation, 0
            self._save_best()
            self.report(Note("This is the best adapter so far."))
        else:
            self.state.evals_without_improvement += 1
        return evaluation

    def _measure(self, step: int) -> Evaluation:
        """Measure the student on valid.jsonl, and note how long that takes."""
        started = self.budget.seconds
        evaluation = self.objective.evaluate(self.valid_rows.chats, step, self.report)
        self.budget.eval_seconds = self.budget.seconds - started
        self.report(Note(f"step {step}: {evaluation}"))
        return evaluation

    def _save_best(self) -> None:
        save_adapter(self.config.adapter, self.model, self.adapter_config, f"best, step {self.state.best.step}")

    def _save_checkpoint(self) -> None:
        self.state.seconds = self.budget.seconds
        save_checkpoint(self.config.adapter, self.model, self.train_step.optimizer, self.state)

    def _write_metrics(self, metrics: StepMetrics | None, valid: Evaluation | None) -> None:
        state = self.state
        line = {"step": state.step, "epoch": round(state.epoch + state.position / self.steps_per_epoch, 3)}
        if metrics:
            figures = msgspec.to_builtins(metrics)
            own_figures = figures.pop("figures")
            line |= {**figures, **own_figures}
        line |= {"valid_loss": valid.loss, "valid_accuracy": valid.accuracy} if valid else {}
        line |= {"valid_kl": valid.kl} if valid and valid.kl is not None else {}
        line |= {"peak_bytes": state.peak_bytes, "seconds": round(self.budget.seconds, 3)}
        try:
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise MachineError(
                f"{self.metrics_file}: cannot write ({error.strerror or error}).",
                "Free disk space, then continue with --resume; the last checkpoint is untouched.",
            ) from error

    def _report_plan(self) -> None:
        """Report what will be trained, and how much memory it is expected to take."""
        config, plan = self.config, self.plan
        steps = f"{len(self.train_rows)} rows, {self.steps_per_epoch} steps an epoch, {self.total_steps} in all"
        low_rank = f"{config.method} rank {config.rank}, alpha {config.alpha:g} (scale {config.scale:g})"
        self.report(Note(f"{steps}; {'all weights' if config.method == 'full' else low_rank}."))
        memory = f"memory: about {plan.estimate or 'unknown for this architecture'}"
        memory += f"; up to {plan.micro_batch_tokens} tokens in a forward pass."
        self.report(Note(memory) if plan.fits else Warning(f"{memory} That is more than a job here should use."))

    def _result(self, stopped: str) -> TrainResult:
        state = self.state
        return TrainResult(
            adapter=self.config.adapter,
            n_trainable=sum(value.size for _, value in tree_flatten(self.model.trainable_parameters())),
            n_parameters=self.objective.student.n_parameters,
            steps=state.step,
            epochs=round(state.step / self.steps_per_epoch, 2),
            stopped=stopped,
            best_step=state.best.step,
            valid_loss_before=state.before.loss,
            valid_loss=state.best.loss,
            valid_accuracy_before=state.before.accuracy,
            valid_accuracy=state.best.accuracy,
            valid_kl_before=state.before.kl,
            valid_kl=state.best.kl,
            n_train_rows=len(self.train_rows),
            n_valid_rows=len(self.valid_rows),
            n_valid_tokens=sum(row.n_targets for row in self.valid_rows.chats),
            supervised_tokens=state.supervised_tokens,
            supervised_tokens_per_second=state.supervised_tokens / max(state.step_seconds, 1e-9),
            peak_bytes=state.peak_bytes,
            estimated_bytes=self.plan.estimate.total if self.plan.estimate else 0,
            seconds=self.budget.seconds,
        )
