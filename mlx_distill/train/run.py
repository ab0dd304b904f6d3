"""Train a student on prepared rows: check the folder, load the student and the rows, plan the memory, run the loop."""

from __future__ import annotations

import time
from collections.abc import Callable

import mlx.core as mx

from mlx_distill import cpu, device
from mlx_distill.errors import InputError
from mlx_distill.events import Report, ignore
from mlx_distill.models.load import load_student
from mlx_distill.storage import files
from mlx_distill.storage.atomic import only_writer
from mlx_distill.train.checkpoint import refuse_to_overwrite
from mlx_distill.train.config import TrainConfig, TrainResult
from mlx_distill.train.cpu_kernels import fast_layers
from mlx_distill.train.data import read_rows
from mlx_distill.train.execution import Execution
from mlx_distill.train.loop import Trainer
from mlx_distill.train.lora import make_trainable
from mlx_distill.train.memory_plan import check_weights_fit, make_plan
from mlx_distill.train.objectives import OBJECTIVES, Objectives
from mlx_distill.train.schedule import TimeBudget
from mlx_distill.train.signals import StopRequest, handle_signals
from mlx_distill.train.step import TrainStep


def run(
    config: TrainConfig,
    report: Report = ignore,
    *,
    objectives: Objectives = OBJECTIVES,
    now: Callable[[], float] = time.perf_counter,
    execution: Execution | None = None,
    on_start: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train an adapter. Keep the best one by validation loss (kd: by KL), and the last one.

    `execution` defaults to what suits the device. `on_start` gets the tokens of the largest micro-batch before the
    first forward pass. Raises InputError for rows or settings that cannot be trained on, before anything is written,
    and if another process trains in the same folder; MachineError if there is not enough memory; Interrupted after
    a signal, with a checkpoint to resume from.
    """
    with only_writer(config.adapter):
        refuse_to_overwrite(config)
        if config.objective not in objectives:
            raise InputError(
                f"objective: {config.objective!r} is unknown.", f"Choose from {', '.join(sorted(objectives))}."
            )
        hardware = device.prepare()
        # Full training needs float32: in 16 bits, rounding would lose small updates.
        dtype = mx.float32 if config.method == "full" else hardware.dtype
        check_weights_fit(config, dtype.size, hardware.usable_bytes)
        student = load_student(config.model, dtype=dtype)
        objective = objectives[config.objective](config, student)
        train_rows, valid_rows = (
            read_rows(config.data / name, objective, config.max_length) for name in (files.TRAIN, files.VALID)
        )
        execution = execution or Execution.on(hardware)
        adapter_config = make_trainable(student, config, cast_adapters=execution.cast_adapters)
        plan = make_plan(objective, train_rows.chats, execution, hardware.usable_bytes)
        train_step = TrainStep(objective, train_rows, plan.micro_batch_tokens, execution)
        if on_start:
            on_start(train_step.largest_micro_batch)
        budget, stop = TimeBudget(config.time_budget_minutes, now), StopRequest()
        with handle_signals(stop.set), cpu.shared_cores(len(execution.streams)), fast_layers(student):
            return Trainer(train_step, valid_rows, plan, adapter_config, budget, stop, report).train()
