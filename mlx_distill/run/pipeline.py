"""`run`: the stages of distill.toml in order, each skipped while nothing that it was made from has changed.

A finished stage leaves a manifest in reports/NAME/manifests: settings, hashes of what it read and wrote, versions,
time and figures. The manifest decides whether the stage is done again, and says why.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from os import getpid
from pathlib import Path
from typing import Annotated, Any

from mlx_distill import device
from mlx_distill.collect import run as collect
from mlx_distill.config import Config, doc, parse, to_plain
from mlx_distill.errors import InputError, MissingError
from mlx_distill.events import Note, Report, ignore
from mlx_distill.run.manifest import Manifest
from mlx_distill.run.project import PROJECT_FILE, Project
from mlx_distill.run.stages import RUN_ORDER, STAGES, settings_of
from mlx_distill.storage.file_states import FileState, states_of
from mlx_distill.storage.journal import Journal
from mlx_distill.teachers.ask import Estimate
from mlx_distill.train.child_process import train_in_child

AGAIN = "asked for again"
CHECKPOINT = "checkpoint.safetensors"
"""In the adapter's folder: what an interrupted training goes on from."""


class RunConfig(Config, frozen=True):
    """What `run` is to do with a project."""

    file: Annotated[Path, doc("the project's settings")] = Path(PROJECT_FILE)
    first: Annotated[str, doc("do this stage and all after it again")] = ""
    force: Annotated[bool, doc("do every stage again; answers that are there are not asked for twice")] = False
    overrides: Annotated[tuple[str, ...], doc("SECTION.KEY=VALUE instead of what the file says")] = ()
    full: Annotated[bool, doc("no time budget for training")] = False

    def check(self) -> None:
        if self.first and self.first not in RUN_ORDER:
            raise ValueError(f"first: {self.first!r} is not one of {', '.join(RUN_ORDER)}")


@dataclass(frozen=True)
class Outcome:
    """How one stage of a run ended."""

    stage: str
    reason: str
    """Why it was done; empty where it was up to date."""
    seconds: float
    """How long it took, now or when it was done."""
    result: Mapping[str, Any]
    """The figures of its result, as JSON data."""
    outputs: tuple[str, ...]

    @property
    def skipped(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class RunResult:
    """All stages of a project, done."""

    name: str
    report: Path
    seconds: float
    stages: tuple[Outcome, ...]


def run(config: RunConfig, report: Report = ignore) -> RunResult:
    """Do the stages of a project. Every setting is checked before the first stage begins.

    The project folder is the working folder. Raises InputError for wrong settings, or where another run of the same
    project is going on, and whatever a stage raises; what earlier stages made stays and is not made again.
    """
    started = time.monotonic()
    project = load_project(config)
    configs = stage_configs(project)
    _refuse_all_weights(configs["train"], project.file)
    outcomes: list[Outcome] = []
    forced = config.force
    with keep_awake(), Journal(project.report / "runs.jsonl") as log:
        for stage in RUN_ORDER:
            forced = forced or stage == config.first
            outcome = perform(stage, configs[stage], manifests(project), report, force=forced)
            outcomes.append(outcome)
            if not outcome.skipped:
                log.append({"stage": stage, "reason": outcome.reason, "seconds": outcome.seconds, "at": _now()})
    return RunResult(project.config.name, project.report, time.monotonic() - started, tuple(outcomes))


def _refuse_all_weights(config: Any, file: Path) -> None:
    """`compare` and `fuse` work on a low-rank update: said before anything is done, not after the training."""
    if config.method == "full":
        raise InputError(
            f'{file}: [train] method = "full" ends in a model, not in an adapter that compare and fuse could use.',
            "Train it by its own command: `mlx-distill train --method full`, then `python -m mlx_lm fuse --model "
            f"{config.model} --adapter-path {config.adapter} --save-path OUT`, and `mlx-distill chat --model OUT`.",
        )


def estimate(config: RunConfig) -> Estimate:
    """What the teacher's answers that `run` lacks will cost. Every setting is checked; nothing is sent or written.

    The comparison's few test prompts are not in it; the cap holds for them too.
    """
    return collect.estimate(stage_configs(load_project(config))["collect"])


def is_paid(config: RunConfig) -> bool:
    """Whether `run` may cost money that is counted. Every setting is checked."""
    return collect.is_paid(stage_configs(load_project(config))["collect"])


def load_project(config: RunConfig) -> Project:
    """The project with the run's overrides in place."""
    project = Project.load(config.file)
    data: dict[str, Any] = {**to_plain(project.config), **{name: {**s} for name, s in project.sections.items()}}
    for override in (*config.overrides, *(["train.minutes=0"] if config.full else [])):
        *sections, name, value = _parsed(override)
        place = data
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise InputError(f"--set {override!r}: {section} is no section.", "For example: --set train.epochs=2")
        place[name] = value
    return Project.from_values(project.file, data)


def _parsed(override: str) -> list[Any]:
    """`train.epochs=2` → ["train", "epochs", 2]. A value that is not TOML is text: `student=sample`."""
    key, equals, text = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or len(path) > 3 or not all(path):
        raise InputError(f"--set {override!r} is not SECTION.KEY=VALUE.", "For example: --set train.epochs=2")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return [*path, value]


def stage_configs(project: Project) -> dict[str, Any]:
    """The config of every stage, the chat's too, so that a wrong setting is found before hours of work, not after."""
    configs: dict[str, Any] = {}
    problems: list[str] = []
    for name, stage in STAGES.items():
        try:
            configs[name] = parse(stage.config, project.values(name), f"[{name}]")
        except InputError as error:
            problems.extend(f"[{name}] {problem}" for problem in error.problems)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError(f"{project.file}: {count}.", "Mend it and run the command again.", problems)
    return configs


def manifests(project: Project) -> Path:
    """The folder of a project's manifests."""
    return project.report / "manifests"


def perform(stage: str, config: Any, folder: Path, report: Report = ignore, *, force: bool = False) -> Outcome:
    """Do one stage unless its manifest in `folder` is current; either way one line says so."""
    file = folder / f"{stage}.json"
    before = Manifest.load(file)
    reason = _reason(stage, config, before, force)
    if before and not reason:
        report(Note(f"{stage}: up to date"))
        return Outcome(stage, "", before.seconds, before.result, tuple(before.outputs))
    report(Note(f"{stage}: {reason}"))
    started = time.monotonic()
    draft = _draft(stage, config, folder)
    replace = force or bool(before and _is_as_made(before))
    if stage == "train":
        result = _train(config, draft, folder / "train.started.json", report, force=force, replace=replace)
    elif stage == "collect":
        result = _collect(_forced(config) if force else config, report)
    elif stage == "fuse":
        _spare(stage, config.out, replace)
        result = to_plain(STAGES[stage].run(config.replace(force=replace), report))
    else:
        result = to_plain(STAGES[stage].run(_forced(config) if force else config, report))
    device.release_memory()
    finished = _finished(draft, config, result, time.monotonic() - started, folder)
    finished.save(file)
    return Outcome(stage, reason, finished.seconds, result, tuple(finished.outputs))


def alone(stage: str, config: Any, report: Report = ignore) -> Any:
    """Do one stage as its own command does: always, and with no more leave to replace than `config` gives.

    Where `config` is what the project in the working folder says, `run` will know that the stage is done.
    """
    project = Project.find(Path())
    folder = manifests(project) if project else Path()
    started = time.monotonic()
    draft = _draft(stage, config, folder)
    result = STAGES[stage].run(config, report)
    if project:
        own = parse(STAGES[stage].config, project.values(stage), f"{project.file} [{stage}]")
        if settings_of(own) == draft.settings:
            _finished(draft, config, to_plain(result), time.monotonic() - started, folder).save(
                folder / f"{stage}.json"
            )
    return result


def _reason(stage: str, config: Any, before: Manifest | None, force: bool) -> str:
    """Why a stage is to be done; empty where it is up to date."""
    if force:
        return AGAIN
    if before is None:
        return "not done yet"
    return before.is_current(settings_of(config), STAGES[stage].reads(config)) or STAGES[stage].lacks(before.result)


def _draft(stage: str, config: Any, folder: Path) -> Manifest:
    """The manifest of a stage that is about to be done."""
    inputs = states_of(STAGES[stage].reads(config), _known_states(folder))
    return Manifest(stage, settings_of(config), inputs, {}, device.versions(), 0.0, _now(), {})


def _finished(draft: Manifest, config: Any, result: Mapping[str, Any], seconds: float, folder: Path) -> Manifest:
    """The manifest of a stage that has been done."""
    outputs = states_of(STAGES[draft.stage].writes(config), _known_states(folder))
    return dataclasses.replace(draft, outputs=outputs, seconds=round(seconds, 2), finished_at=_now(), result=result)


def _is_as_made(manifest: Manifest) -> bool:
    """Whether what lies at a stage's outputs is what the stage made: only that is replaced without being asked to."""
    now = states_of(map(Path, manifest.outputs), manifest.outputs)
    return all(state.sha256 == manifest.outputs[path].sha256 for path, state in now.items())


def _spare(stage: str, folder: Path, replace: bool) -> None:
    """Raise InputError where `folder` holds something that is not to be replaced."""
    if not replace and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{stage}: {folder} holds something that `run` did not make, or that was changed since.",
            f"To replace it: mlx-distill run --from {stage}. To keep it, move it, or give the project another name.",
        )


def _forced(config: Any) -> Any:
    return config.replace(force=True) if hasattr(config, "force") else config


def _collect(config: Any, report: Report) -> dict[str, Any]:
    """Collect, and wait for batches that are under way: what comes after needs their answers."""
    result = collect.run(config, report)
    if result.n_in_batches:
        result = collect.run(config.replace(wait=True), report).after(result)
    plain: dict[str, Any] = to_plain(result)
    return plain


def _train(
    config: Any, draft: Manifest, started: Path, report: Report, *, force: bool, replace: bool
) -> dict[str, Any]:
    """Train in a child; an interrupted training with the same settings and rows goes on where it stopped.

    `started` is the manifest of a training that has begun and not ended.
    """
    unfinished = Manifest.load(started)
    same = bool(unfinished and not unfinished.is_current(draft.settings, map(Path, draft.inputs)))
    resume = same and not force and (config.adapter / CHECKPOINT).exists()
    replace = not resume and (replace or bool(unfinished))
    if not resume:
        _spare("train", config.adapter, replace)
    draft.save(started)
    result = train_in_child(config.replace(resume=resume, force=replace), report)
    started.unlink(missing_ok=True)
    return result


def _known_states(folder: Path) -> dict[str, FileState]:
    """File states in all manifests, so that weights which several stages read are hashed once."""
    known: dict[str, FileState] = {}
    for stage in RUN_ORDER:
        manifest = Manifest.load(folder / f"{stage}.json")
        if manifest:
            known.update(manifest.inputs)
            known.update(manifest.outputs)
    return known


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def keep_awake(system: str = sys.platform) -> Iterator[None]:
    """On a Mac, no idle sleep within the block. `-w` ends caffeinate with this process, however that ends."""
    if system != "darwin":
        yield
        return
    try:
        caffeinate = subprocess.Popen(["caffeinate", "-i", "-w", str(getpid())], stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise MissingError("caffeinate is not on the PATH; macOS has it in /usr/bin.", "Mend the PATH.") from error
    try:
        yield
    finally:
        caffeinate.terminate()
        caffeinate.wait()
