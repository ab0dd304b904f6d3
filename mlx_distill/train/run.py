"""The training loop: rows in, one update after another, the best adapter out. One loop for Metal and CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_distill import device
from mlx_distill.config import to_plain
from mlx_distill.errors import Interrupted, MachineError
from mlx_distill.events import Note, Progress, Report, Warning, ignore
from mlx_distill.models.load import Student, load_student, read_config
from mlx_distill.models.score import Score, score
from mlx_distill.storage.atomic import make_folder, write_json
from mlx_distill.train import memory_plan as memory
from mlx_distill.train.batches import epoch_batches, padding_share
from mlx_distill.train.checkpoint import (
    CHECKPOINT_FILE,
    LAST_FOLDER,
    RUN_FILE,
    State,
    digest_of_model,
    load_checkpoint,
    save_adapter,
    save_checkpoint,
)
from mlx_distill.train.config import TrainConfig, TrainResult
from mlx_distill.train.cpu_kernels import sooner_layers
from mlx_distill.train.lora import checkpointed_layers, make_trainable
from mlx_distill.train.metrics import Metrics, Step
from mlx_distill.train.objectives import OBJECTIVES, Objective
from mlx_distill.train.output_folder import refuse_to_overwrite
from mlx_distill.train.rows import Rows, read_rows
from mlx_distill.train.schedule import learning_rate
from mlx_distill.train.signals import StopRequest, command_to_resume, stop_requests
from mlx_distill.train.step import Updater
from mlx_distill.train.time_budget import Clock

NOT_DECIDING = {"resume", "force", "checkpoint_every", "micro_tokens", "adapter", "model", "data", "preset"}
"""Settings that may differ between a run and its continuation: they change nothing but the last digits, or only stand
for others."""


def run(config: TrainConfig, report: Report = ignore, *, objective: Objective = OBJECTIVES["sft"]) -> TrainResult:
    """Train a LoRA adapter; keep the best one by validation loss, and the last.

    Raises InputError for rows or settings that cannot be trained on, before anything is written; Interrupted after
    Ctrl-C or SIGTERM, with a checkpoint to resume from.
    """
    refuse_to_overwrite(config)
    hardware = device.prepare()
    # All weights are trained in float32: in 16 bits they would round small updates away.
    dtype = mx.float32 if config.method == "full" else hardware.dtype
    memory.refuse_weights(read_config(config.model), config, dtype.size, hardware.usable_bytes)
    student = load_student(config.model, dtype=dtype)
    rows = {
        split: read_rows(config.data / f"{split}.jsonl", student, objective, config.max_length)
        for split in ("train", "valid")
    }
    plan = memory.make_plan(student, config, rows["train"].rows, hardware.usable_bytes)
    adapter_config = make_trainable(student, config)
    with (
        stop_requests() as stop,
        device.shared_cores(len(device.streams())),
        sooner_layers(student),
        checkpointed_layers(student, config.grad_checkpoint),
    ):
        training = Run(config, student, objective, rows["train"], rows["valid"], plan, adapter_config, report, stop)
        return training.finish(training.steps())


class Run:
    """One training run over prepared rows: its state, its steps, and what it writes."""

    def __init__(
        self,
        config: TrainConfig,
        student: Student,
        objective: Objective,
        train_rows: Rows,
        valid_rows: Rows,
        plan: memory.Plan,
        adapter_config: dict[str, Any],
        report: Report,
        stop: StopRequest,
    ) -> None:
        self.config = config
        self.student = student
        self.objective = objective
        self.train_rows = train_rows
        self.valid_rows = valid_rows
        self.plan = plan
        self.adapter_config = adapter_config
        self.report = report
        self.stop = stop
        self.metrics = Metrics(config.adapter)
        self.lengths = train_rows.lengths
        self.updates_an_epoch = math.ceil(len(train_rows) / config.batch_size)
        self.total_steps = self.updates_an_epoch * config.epochs
        self.updater = Updater(config, student, objective, train_rows, plan.micro_tokens)
        self.settings = {name: value for name, value in to_plain(config).items() if name not in NOT_DECIDING}
        self.settings |= {"train rows": train_rows.digest, "valid rows": valid_rows.digest}
        self.settings |= {"weights of the model": digest_of_model(config.model)}
        self.state = State(settings=self.settings)
        self.clock = Clock(config.minutes)

    # -- the run ---------------------------------------------------------------------------------------------------

    def steps(self) -> str:
        """Take every step from where the state is, and say why it ended."""
        self._begin()
        mx.reset_peak_memory()
        while self.state.epoch < self.config.epochs:
            batches = epoch_batches(self.lengths, self.config.batch_size, self.config.seed, self.state.epoch)
            while self.state.position < len(batches):
                step = self._step(batches[self.state.position])
                self.state.position += 1
                last_of_epoch = self.state.position == len(batches)
                over = self.clock.is_over(self.state, self.total_steps)
                if over or self._is_time_to_look(last_of_epoch):
                    self._look(step)
                    over = over or self.clock.is_over(self.state, self.total_steps)  # a look takes time as well
                else:
                    self._write_metrics(step)
                if self.stop.signal or last_of_epoch or self.state.step % self.config.checkpoint_every == 0:
                    if last_of_epoch:
                        self.state.epoch, self.state.position = self.state.epoch + 1, 0
                    self._save()
                if self.stop.signal:
                    raise Interrupted(
                        f"after step {self.state.step} of {self.total_steps}, with a checkpoint in "
                        f"{self.config.adapter}.",
                        f"Go on with: {command_to_resume(self.config)}",
                        128 + self.stop.signal,
                    )
                if over:
                    return "time budget"
                if self.config.patience and self.state.looks_without_gain >= self.config.patience:
                    return "early stop"
                if last_of_epoch:
                    break
        return "finished"

    def finish(self, stopped: str) -> TrainResult:
        """Write the last adapter and run.json, and return the figures."""
        state, config = self.state, self.config
        save_adapter(config.adapter / LAST_FOLDER, self.student.model, self.adapter_config, f"last, step {state.step}")
        trainable = sum(value.size for _, value in tree_flatten(self.student.model.trainable_parameters()))
        result = TrainResult(
            adapter=config.adapter,
            n_trainable=trainable,
            n_parameters=self.student.n_parameters,
            steps=state.step,
            epochs=round(state.step / self.updates_an_epoch, 2),
            stopped=stopped,
            best_step=state.best_step,
            valid_loss_before=state.valid_before[0],
            valid_loss=state.valid_best[0],
            valid_accuracy_before=state.valid_before[1],
            valid_accuracy=state.valid_best[1],
            n_train_rows=len(self.train_rows),
            n_valid_rows=len(self.valid_rows),
            n_valid_tokens=sum(sum(row.mask[1:]) for row in self.valid_rows.rows),
            supervised_tokens=state.supervised_tokens,
            supervised_tokens_per_second=state.supervised_tokens / max(state.step_seconds, 1e-9),
            peak_bytes=state.peak_bytes,
            estimated_bytes=self.plan.estimate.total if self.plan.estimate else 0,
            seconds=self.clock.seconds,
        )
        figures = {name: str(value) if isinstance(value, Path) else value for name, value in vars(result).items()}
        write_json(config.adapter / RUN_FILE, {"settings": to_plain(config), "result": figures})
        return result

    # -- its parts -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        folder = self.config.adapter
        if self.config.resume:
            self.state = load_checkpoint(folder, self.student.model, self.updater.optimizer, self.settings)
            self.clock.add(self.state.seconds)
            self.metrics.go_on_after(self.state.step)
            self._say_plan()
            self.report(Note(f"Going on after step {self.state.step} of {self.total_steps}."))
            return
        make_folder(folder)
        self.metrics.start()
        for name in (RUN_FILE, CHECKPOINT_FILE):
            (folder / name).unlink(missing_ok=True)
        self.updater.optimizer.init(self.student.model.trainable_parameters())
        self._say_plan()
        self._look(None)
        self._save()

    def _say_plan(self) -> None:
        """What will be done, and how much memory it is expected to take."""
        config = self.config
        share = padding_share(self.lengths, epoch_batches(self.lengths, config.batch_size, config.seed, 0))
        low_rank = f"{config.method} rank {config.rank}, alpha {config.alpha:g} (scale {config.scale:g})"
        self.report(
            Note(
                f"{len(self.train_rows)} rows, {self.updates_an_epoch} updates an epoch, {self.total_steps} in all; "
                f"{'all weights' if config.method == 'full' else low_rank}; padding {share:.1%}."
            )
        )
        needs = self.plan.estimate or "unknown for this architecture"
        kind = Note if self.plan.fits else Warning
        what = "memory" if self.plan.fits else "more memory than a job here should use"
        self.report(kind(f"{what}: about {needs}; up to {self.plan.micro_tokens} tokens in one forward pass."))

    def _step(self, batch: Sequence[int]) -> Step:
        """One update, counted, told and checked."""
        rate = learning_rate(
            self.config.learning_rate,
            self.clock.progress(self.state.step, self.total_steps),
            warmup=self.config.warmup,
            schedule=self.config.schedule,
        )
        step = self.updater.take(batch, rate, self.state.step + 1)
        if not math.isfinite(step.loss) or not math.isfinite(step.gradient_norm):
            raise MachineError(
                f"The loss is {step.loss} and the gradient's norm {step.gradient_norm} at step {self.state.step + 1} "
                f"(rows {self.train_rows.names(batch)} of train.jsonl).",
                f"The adapter of step {self.state.best_step}, the best so far, and the last checkpoint are in "
                f"{self.config.adapter}. Lower --learning-rate, or look at those rows.",
            )
        self.state.step += 1
        self.state.supervised_tokens += step.n_supervised
        self.state.step_seconds += step.seconds
        self.state.peak_bytes = max(self.state.peak_bytes, mx.get_peak_memory())
        note = (
            f"loss {step.loss:.3f}  accuracy {step.accuracy:.1%}  "
            f"{step.n_supervised / step.seconds:.0f} answer tokens/s"
        )
        self.report(Progress("train", self.state.step, self.total_steps, "steps", note))
        return step

    def _look(self, step: Step | None) -> None:
        """Evaluate on valid.jsonl; keep the adapter where it is the best so far. `step` is None before the first."""
        started = time.perf_counter()
        result = score(self.student, self.valid_rows.rows, self.report, "valid")
        now = (result.loss, result.token_accuracy)
        if step is None:
            self.state.valid_before = now
        if result.loss < self.state.valid_best[0]:
            self.state.valid_best, self.state.best_step, self.state.looks_without_gain = now, self.state.step, 0
            moment = f"best, step {self.state.step}"
            save_adapter(self.config.adapter, self.student.model, self.adapter_config, moment)
        else:
            self.state.looks_without_gain += 1
        best = " (best so far)" if self.state.best_step == self.state.step and step else ""
        self.report(
            Note(f"step {self.state.step}: valid loss {result.loss:.3f}, accuracy {result.token_accuracy:.1%}{best}")
        )
        self.clock.look_seconds = time.perf_counter() - started
        self._write_metrics(step, result)

    def _write_metrics(self, step: Step | None, valid: Score | None = None) -> None:
        epoch = self.state.epoch + self.state.position / self.updates_an_epoch
        self.metrics.write(self.state, epoch, self.clock.seconds, step, valid)

    def _save(self) -> None:
        self.state.seconds = self.clock.seconds
        save_checkpoint(self.config.adapter, self.student.model, self.updater.optimizer, self.state)

    def _is_time_to_look(self, last_of_epoch: bool) -> bool:
        if self.config.evaluate_every:
            return self.state.step % self.config.evaluate_every == 0 or self.state.step == self.total_steps
        return last_of_epoch
