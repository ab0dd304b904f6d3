"""Run the stages of a project in order. A stage is skipped if its settings, inputs and outputs have not changed.

A finished stage writes a manifest in reports/NAME/manifests, which `run` compares with the current settings and files.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from os import getpid
from pathlib import Path
from typing import Any

from mlx_distill import device
from mlx_distill.collect.config import CollectConfig, CollectResult
from mlx_distill.config import Config, parse, to_plain
from mlx_distill.errors import DistillError, InputError, MissingError
from mlx_distill.events import Note, Report, ignore
from mlx_distill.formatting import plural
from mlx_distill.fuse.config import FuseConfig
from mlx_distill.logprobs.config import LogprobsConfig
from mlx_distill.models.config import is_local
from mlx_distill.run.config import RunConfig, RunResult, StageOutcome
from mlx_distill.run.manifest import Manifest, known_states
from mlx_distill.run.project import Project
from mlx_distill.run.stages import COLLECT, LOGPROBS, SECTIONS, STAGES, C, R, Stage, decisive_settings
from mlx_distill.storage.atomic import is_occupied
from mlx_distill.storage.files import CHECKPOINT
from mlx_distill.storage.journal import Journal
from mlx_distill.train.child_process import train_in_child
from mlx_distill.train.config import TrainConfig, TrainResult


def run(config: RunConfig, report: Report = ignore) -> RunResult:
    """Run the stages of the project in the working folder. All settings are checked before the first stage starts.

    Raises InputError for wrong settings or if another run of the project is in progress, and the errors of the stages.
    After an error, the results of the earlier stages stay up to date.
    """
    started = time.monotonic()
    project = load_project(config)
    configs = stage_configs(project)
    _refuse_full_training(configs["train"], project.file)
    _refuse_remote_teacher(configs["train"], configs["logprobs"], project.file)
    outcomes: list[StageOutcome] = []
    force = config.force
    with keep_awake(), Journal(project.run_log) as log:
        for stage in STAGES:
            force = force or stage.name == config.first
            if stage is LOGPROBS and not _needs_logprobs(configs["train"], configs["logprobs"]):
                continue
            check = partial(check_teacher, project, configs["collect"], report) if stage is COLLECT else None
            outcome = update_stage(stage, configs[stage.name], project.manifests, report, force=force, check=check)
            outcomes.append(outcome)
            if not outcome.skipped:
                at = datetime.now(UTC).isoformat(timespec="seconds")
                log.append({"stage": stage.name, "reason": outcome.reason, "seconds": outcome.seconds, "at": at})
    return RunResult(project.config.name, project.report, time.monotonic() - started, tuple(outcomes))


def collect_config(config: RunConfig) -> CollectConfig:
    """Return the settings of `collect` in this run, for the cost estimate. All settings of the project are checked."""
    collect: CollectConfig = stage_configs(load_project(config))["collect"]
    return collect


def run_standalone(stage: Stage[C, R], config: C, report: Report = ignore) -> R:
    """Run one stage for its own command, up to date or not.

    If `config` has the settings of the project in the working folder, the manifest is written, so that `run` skips the
    stage.
    """
    project = Project.find(Path())
    manifest = None
    if project and _matches_project(stage, config, project):
        manifest = _begin(stage, config, project.manifests)
    if isinstance(config, CollectConfig):
        check_teacher(project, config, report)
    started = time.monotonic()
    with keep_awake():
        if isinstance(config, TrainConfig):
            result: Any = train_in_child(config, report)
        else:
            result = stage.run(config, report)
    if project and manifest:
        _finish(manifest, config, result, time.monotonic() - started).save(_manifest_file(stage, project.manifests))
    return result  # type: ignore[no-any-return] # R is TrainResult for a TrainConfig


def update_stage(
    stage: Stage[Any, Any],
    config: Any,
    manifests: Path,
    report: Report = ignore,
    *,
    force: bool = False,
    check: Callable[[], None] | None = None,
) -> StageOutcome:
    """Run one stage if its manifest in `manifests` says that it is not up to date, or with `force`.

    `check` is called before a stage that runs.
    """
    file = _manifest_file(stage, manifests)
    before = Manifest.load(file)
    if force:
        reason = "requested"
    elif before is None:
        reason = "not run yet"
    else:
        reason = before.reason_to_run(decisive_settings(config), config.inputs())
    if before and not reason:
        report(Note(f"{stage.name}: up to date"))
        return StageOutcome(stage.name, "", before.seconds, before.summary, tuple(before.outputs))
    report(Note(f"{stage.name}: {reason}"))
    if check:
        check()
    started = time.monotonic()
    manifest = _begin(stage, config, manifests)
    may_replace = force or (before is not None and before.outputs_unchanged())
    if isinstance(config, TrainConfig):
        started_file = manifests / "train.started.json"
        result: Any = _train(config, manifest, started_file, report, force=force, may_replace=may_replace)
    elif isinstance(config, CollectConfig):
        result = _collect(config, report)
    elif isinstance(config, FuseConfig):
        result = stage.run(config.replace(force=may_replace), report)
    else:
        result = stage.run(config.replace(force=True) if force and hasattr(config, "force") else config, report)
    device.release_memory()
    finished = _finish(manifest, config, result, time.monotonic() - started)
    finished.save(file)
    return StageOutcome(stage.name, reason, finished.seconds, finished.summary, tuple(finished.outputs))


def load_project(config: RunConfig) -> Project:
    """Return the project after the overrides of a run."""
    project = Project.load(config.file)
    data: dict[str, Any] = {**to_plain(project.config), **copy.deepcopy(dict(project.sections))}
    overrides = (*config.overrides, *(["train.time_budget_minutes=0"] if config.full else []))
    for override in overrides:
        *sections, name, value = _parse_override(override)
        table = data
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise InputError(f"--set {override!r}: {section} is not a section.", "Example: --set train.epochs=2")
        table[name] = value
    return Project.from_values(project.file, data)


def _parse_override(override: str) -> list[Any]:
    """Parse `train.epochs=2` to ["train", "epochs", 2]. A value that is not TOML is text: `student=sample`."""
    key, equals, text = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or len(path) > 3 or not all(path):
        raise InputError(f"--set {override!r} is not SECTION.KEY=VALUE.", "Example: --set train.epochs=2")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return [*path, value]


def stage_configs(project: Project) -> dict[str, Any]:
    """Return the config of every section. Raises InputError with the wrong settings of all sections."""
    configs: dict[str, Any] = {}
    problems: list[str] = []
    for name, (kind, _) in SECTIONS.items():
        try:
            configs[name] = parse(kind, project.values(name), f"[{name}]")
        except InputError as error:
            problems += [f"[{name}] {problem}" for problem in error.problems]
    if problems:
        count = plural(len(problems), "problem")
        raise InputError(f"{project.file}: {count}.", "Fix it and run the command again.", problems)
    return configs


@contextmanager
def keep_awake(system: str = sys.platform) -> Iterator[None]:
    """Prevent idle sleep on a Mac. With `-w`, caffeinate ends when this process ends, even by a kill."""
    if system != "darwin":
        yield
        return
    try:
        caffeinate = subprocess.Popen(["caffeinate", "-i", "-w", str(getpid())], stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise MissingError(
            "caffeinate is not on the PATH; macOS has it in /usr/bin.", "Add /usr/bin to the PATH."
        ) from error
    try:
        yield
    finally:
        caffeinate.terminate()
        caffeinate.wait()


def _refuse_full_training(config: TrainConfig, file: Path) -> None:
    """Raise InputError before any work, because `compare` and `fuse` need a low-rank adapter."""
    if config.method == "full":
        raise InputError(
            f'{file}: [train] method = "full" makes a model, not an adapter that compare and fuse can use.',
            "Train it with its own command: `mlx-distill train --method full`, then `python -m mlx_lm fuse --model "
            f"{config.model} --adapter-path {config.adapter} --save-path OUT`, and `mlx-distill chat --model OUT`.",
        )


def _needs_logprobs(train: TrainConfig, logprobs: LogprobsConfig) -> bool:
    return train.objective == "kd" and logprobs.top_k > 0


def _refuse_remote_teacher(train: TrainConfig, logprobs: LogprobsConfig, file: Path) -> None:
    """Raise InputError before any work, because only a teacher on this machine gives its probabilities."""
    teacher = train.teacher or logprobs.teacher
    if train.objective in ("kd", "on-policy") and not is_local(teacher):
        raise InputError(
            f"{file}: objective = {train.objective!r} needs the probabilities of the teacher, and {teacher} gives text "
            "only.",
            f"Name a local teacher at the top of the file or in [{'train' if train.teacher else 'logprobs'}]: "
            'teacher = "mlx:FOLDER", "mlx:OWNER/NAME" or "self". Or set [train] objective = "sft".',
        )


def check_teacher(project: Project | None, config: CollectConfig, report: Report = ignore) -> None:
    """Say what a local teacher needs and whether its tokens are the student's. Raises DistillError if it cannot teach.

    The tokens matter only for an objective that learns the teacher's probabilities.
    """
    if not is_local(config.teacher) or config.model is None:
        return
    device.prepare()
    from mlx_distill.models.local_teacher import describe_teacher

    scores = project is not None and project.objective != "sft"
    in_memory = project is not None and project.trains_with_teacher
    text = describe_teacher(config.teacher, config.model, scores=scores, in_memory=in_memory, report=report)
    report(Note(text))


def _collect(config: CollectConfig, report: Report) -> CollectResult:
    """Collect, and wait for pending batches: the next stages need their answers."""
    from mlx_distill.collect.run import run as collect

    result = collect(config, report)
    if result.n_in_batches:
        result = collect(config.replace(wait=True), report).after(result)
    return result


def _train(
    config: TrainConfig, manifest: Manifest, started_file: Path, report: Report, *, force: bool, may_replace: bool
) -> TrainResult:
    """Train in a child process. Resume a training that was interrupted and had the same settings and rows.

    `started_file` holds the manifest of a training that started and did not finish.
    """
    unfinished = Manifest.load(started_file)
    same = unfinished is not None and not unfinished.reason_to_run(manifest.settings, map(Path, manifest.inputs))
    resume = same and not force and (config.adapter / CHECKPOINT).exists()
    may_replace = not resume and (may_replace or unfinished is not None)
    if is_occupied(config.adapter) and not resume and not may_replace:
        raise InputError(
            f"train: {config.adapter} holds files that `run` did not make, or that changed later.",
            "To replace them: mlx-distill run --from train. To keep them, move them or rename the project.",
        )
    manifest.save(started_file)
    result = train_in_child(config.replace(resume=resume, force=may_replace), report)
    started_file.unlink(missing_ok=True)
    return result


def _manifest_file(stage: Stage[Any, Any], manifests: Path) -> Path:
    return manifests / f"{stage.name}.json"


def _begin(stage: Stage[Any, Any], config: Any, manifests: Path) -> Manifest:
    return Manifest.begin(stage.name, decisive_settings(config), config.inputs(), known_states(manifests))


def _finish(manifest: Manifest, config: Any, result: Any, seconds: float) -> Manifest:
    incomplete = ""
    if isinstance(result, CollectResult) and result.n_answered < result.n_prompts:
        incomplete = f"{plural(result.n_prompts - result.n_answered, 'answer')} missing"
    return manifest.finish(config.outputs(), seconds, result.summary(), incomplete)


def _matches_project(stage: Stage[Any, Any], config: Config, project: Project) -> bool:
    try:
        own = parse(stage.config, project.values(stage.name), str(project.file))
    except DistillError:
        return False
    return decisive_settings(own) == decisive_settings(config)
