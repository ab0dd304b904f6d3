"""`run`: stages run in order and only with a reason, and files that `run` did not make are not replaced."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_distill.errors import InputError
from mlx_distill.events import Event, Note
from mlx_distill.run.config import RUN_ORDER, RunConfig, RunResult
from mlx_distill.run.pipeline import keep_awake, load_project, run, run_standalone, stage_configs
from mlx_distill.run.project import Project
from mlx_distill.run.stages import PREPARE, TRAIN
from mlx_distill.storage.journal import Journal
from mlx_distill.train.config import TrainConfig
from tests.conftest import Finished
from tests.support.small_project import SPLITS, write_project
from tests.support.tiny import make_tiny_qwen2

STAGES_OF_SFT = tuple(stage for stage in RUN_ORDER if stage != "logprobs")


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after one run; copy it before you change anything.

    Its student is float32, because a fused 16-bit model would lose the small change of such a short training.
    """
    folder = tmp_path_factory.mktemp("project") / "tiny"
    write_project(folder, make_tiny_qwen2(folder.parent / "student", dtype="float32"))
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = run(RunConfig())
    finally:
        os.chdir(before)
    assert [outcome.reason for outcome in result.stages] == ["not run yet"] * len(STAGES_OF_SFT)
    return folder


@pytest.fixture
def project(finished_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished project, as the working folder."""
    shutil.copytree(finished_project, tmp_path / "tiny", symlinks=True)
    monkeypatch.chdir(tmp_path / "tiny")
    return tmp_path / "tiny"


def reasons(result: RunResult) -> dict[str, str]:
    """Return the reason of each stage that ran."""
    return {outcome.stage: outcome.reason for outcome in result.stages if not outcome.skipped}


def edit(old: str, new: str) -> None:
    file = Path("distill.toml")
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_run_leaves_results_and_manifests(project: Path) -> None:
    for file in (
        "data/tiny/teacher_data.jsonl",
        "data/tiny/train.jsonl",
        "adapters/tiny/adapters.safetensors",
        "reports/tiny/report.json",
        "reports/tiny/report.md",
        "models/tiny/model.safetensors",
    ):
        assert Path(file).exists(), file
    for stage in STAGES_OF_SFT:
        manifest = json.loads(Path(f"reports/tiny/manifests/{stage}.json").read_text())
        assert manifest["stage"] == stage and manifest["summary"] and manifest["outputs"] and manifest["settings"]
        assert {"mlx", "mlx-lm", "mlx-distill", "python"} <= set(manifest["versions"])
    train = json.loads(Path("reports/tiny/manifests/train.json").read_text())
    assert train["settings"]["seed"] == 0 and not {"force", "resume"} & set(train["settings"])
    assert "data/tiny/train.jsonl" in train["inputs"] and train["seconds"] > 0
    assert not Path("reports/tiny/manifests/train.started.json").exists()
    log = [json.loads(line) for line in Path("reports/tiny/runs.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log] == list(STAGES_OF_SFT)


def test_rerun_does_nothing_and_loads_no_mlx(project: Path) -> None:
    code = (
        "import sys\nfrom mlx_distill.run.config import RunConfig\nfrom mlx_distill.run.pipeline import run\n"
        "events = []\nresult = run(RunConfig(), events.append)\n"
        "assert all(one.skipped and one.summary and one.seconds > 0 for one in result.stages), result\n"
        f"assert [event.text for event in events] == [f'{{name}}: up to date' for name in {STAGES_OF_SFT!r}]\n"
        "assert not {'mlx.core', 'mlx_lm', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True)


def test_changed_setting_reruns_what_depends_on_it(project: Path) -> None:
    edit("batch_size = 2", "batch_size = 3")
    assert reasons(run(RunConfig())) == {
        "train": "batch_size changed",
        "compare": "adapters.safetensors changed",
        "fuse": "adapters.safetensors changed",
    }
    assert reasons(run(RunConfig())) == {}


def test_changed_file_is_named_and_edited_result_kept(project: Path) -> None:
    rows = Path("data/tiny/valid.jsonl").read_text()
    Path("data/tiny/valid.jsonl").write_text(rows.replace("constant", "fixed value"))
    Path("adapters/tiny/adapters.safetensors").write_bytes(b"edited by hand")
    events: list[Event] = []
    with pytest.raises(InputError, match="adapters/tiny"):  # prepare wrote the rows again, so only the adapter differs
        run(RunConfig(), events.append)
    assert Note("prepare: valid.jsonl changed") in events
    assert Note("train: adapters.safetensors changed") in events
    assert Path("data/tiny/valid.jsonl").read_text() == rows
    assert Path("adapters/tiny/adapters.safetensors").read_bytes() == b"edited by hand"


def test_new_prompt_reaches_the_model(project: Path) -> None:
    question = "Name one colour."
    prompt = {"id": "new", "prompt": question, "family": "new", "split": "train"}
    recorded = {"prompt_id": "new", "messages": [{"role": "user", "content": question}], "answer": "Blue."}
    for file, row in (("prompts.jsonl", prompt), ("recorded.jsonl", recorded)):
        with Path(file).open("a") as open_file:
            open_file.write(json.dumps(row) + "\n")
    result = run(RunConfig())
    assert reasons(result)["collect"] in ("prompts.jsonl changed", "recorded.jsonl changed")
    assert reasons(result)["train"] == "train.jsonl changed"
    assert "convert" not in reasons(result)
    assert len(Path("data/tiny/teacher_data.jsonl").read_text().splitlines()) == len(SPLITS) + 1


def test_missing_answer_is_requested_by_every_run(project: Path) -> None:
    shutil.rmtree("data/tiny")
    lines = Path("recorded.jsonl").read_text().splitlines(keepends=True)
    Path("recorded.jsonl").write_text("".join(lines[1:]))
    first, second = run(RunConfig()), run(RunConfig())
    assert reasons(first)["collect"] == "teacher_data.jsonl is missing"
    assert reasons(second) == {"collect": "1 answer missing"}
    Path("recorded.jsonl").write_text("".join(lines))
    assert {"collect", "prepare", "train"} <= set(reasons(run(RunConfig())))
    assert reasons(run(RunConfig())) == {}


def test_from_repeats_a_stage_and_all_after_it(project: Path) -> None:
    assert reasons(run(RunConfig(first="compare"))) == {"compare": "requested", "fuse": "requested"}


def test_result_without_manifest_is_not_replaced(project: Path) -> None:
    shutil.rmtree("reports/tiny/manifests")
    for _ in range(2):  # the first refusal must not permit the second run
        with pytest.raises(InputError, match="adapters/tiny holds files that `run` did not make") as caught:
            run(RunConfig())
    assert "--from train" in caught.value.next_step
    assert set(reasons(run(RunConfig(first="train")))) == {"train", "compare", "fuse"}


def test_standalone_stage_counts_for_run(project: Path) -> None:
    shutil.rmtree("adapters/tiny")
    Path("reports/tiny/manifests/train.json").unlink()
    run_standalone(TRAIN, stage_configs(Project.load(Path("distill.toml")))["train"])
    assert "train" not in reasons(run(RunConfig()))


def test_standalone_stage_with_other_settings_does_not(project: Path) -> None:
    manifest = Path("reports/tiny/manifests/prepare.json").read_text()
    overrides = ("prepare.filter.min_answer_tokens=2",)
    run_standalone(PREPARE, stage_configs(load_project(RunConfig(overrides=overrides)))["prepare"])
    assert Path("reports/tiny/manifests/prepare.json").read_text() == manifest


def test_interrupted_training_resumes(project: Path, cli: Callable[..., Finished]) -> None:
    edit("epochs = 1", "epochs = 20\ncheckpoint_every = 1")
    checkpoint = Path("adapters/tiny/checkpoint.safetensors")
    old = checkpoint.stat().st_mtime_ns
    command = [sys.executable, "-m", "mlx_distill", "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == old:
            assert started.poll() is None
            time.sleep(0.02)
        started.send_signal(signal.SIGINT)
        _, err = started.communicate(timeout=120)
    assert started.returncode == 130, err
    assert "Stopped: " in err and "mlx-distill run` again" in err
    assert Path("reports/tiny/manifests/train.started.json").exists()
    edit("epochs = 20", "epochs  =  20")  # the same settings in another spelling
    again = cli("run", "--json")
    assert again.code == 0, again.err
    assert "Continuing after step" in again.err
    train = next(stage for stage in json.loads(again.out)["stages"] if stage["stage"] == "train")
    assert "20 epochs" in train["summary"]
    assert not Path("reports/tiny/manifests/train.started.json").exists()


def test_overrides_are_toml_or_text(project: Path) -> None:
    overrides = (
        "train.epochs=2",
        "train.learning_rate = 1e-4",
        'train.targets=["self_attn.q_proj"]',
        "student=sample",
        "prepare.filter.require_parsing_code=false",
        'system="x = 1"',
    )
    loaded = load_project(RunConfig(overrides=overrides))
    train = stage_configs(loaded)["train"]
    assert isinstance(train, TrainConfig)
    assert (train.epochs, train.learning_rate, train.targets) == (2, 1e-4, ("self_attn.q_proj",))
    assert (loaded.config.student, loaded.config.system) == ("sample", "x = 1")
    assert stage_configs(loaded)["prepare"].filter.require_parsing_code is False


def test_full_run_has_no_time_budget(project: Path) -> None:
    edit("epochs = 1", "epochs = 1\ntime_budget_minutes = 2.5")
    assert stage_configs(load_project(RunConfig()))["train"].time_budget_minutes == 2.5
    assert stage_configs(load_project(RunConfig(full=True)))["train"].time_budget_minutes == 0


@pytest.mark.parametrize("override", ["train.epochs", "=3", "a.b.c.d=3", "train.=3"])
def test_malformed_override_is_refused(project: Path, override: str) -> None:
    with pytest.raises(InputError, match=r"is not SECTION\.KEY=VALUE"):
        load_project(RunConfig(overrides=(override,)))


def test_all_wrong_settings_are_named_before_any_work(project: Path) -> None:
    edit("epochs = 1", 'epochs = "one"\nclip = 1.0')
    edit("max_tokens = 8", "max_token = 8")
    before = Path("reports/tiny/runs.jsonl").read_text()
    with pytest.raises(InputError) as caught:
        run(RunConfig(force=True))
    assert caught.value.problems == (
        "[train] epochs = 'one': expected int, got str",
        "[train] clip is called max_grad_norm now",
        "[compare] unknown setting 'max_token'; did you mean 'max_tokens'?",
    )
    assert Path("reports/tiny/runs.jsonl").read_text() == before


def test_full_finetuning_is_refused_before_any_work(project: Path) -> None:
    before = Path("reports/tiny/runs.jsonl").read_text()
    with pytest.raises(InputError, match="full") as error:
        run(RunConfig(overrides=("train.method=full",), force=True))
    assert "mlx-distill train --method full" in error.value.next_step
    assert Path("reports/tiny/runs.jsonl").read_text() == before


def test_second_run_of_a_project_is_refused(project: Path) -> None:
    with (
        Journal(Path("reports/tiny/runs.jsonl")),
        pytest.raises(InputError, match="being written by another mlx-distill"),
    ):
        run(RunConfig())


def test_mac_is_kept_awake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "caffeinate"
    program.write_text('#!/bin/sh\necho "$@" > "$CALLED"\nexec sleep 60\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CALLED", str(tmp_path / "called"))
    with keep_awake("darwin"):
        while not (tmp_path / "called").exists() or not (tmp_path / "called").read_text():
            time.sleep(0.01)
    assert (tmp_path / "called").read_text().split() == ["-i", "-w", str(os.getpid())]
    with keep_awake("linux"):
        pass


def test_command_prints_one_line_a_stage(project: Path, cli: Callable[..., Finished]) -> None:
    finished = cli("run")
    assert finished.code == 0, finished.err
    for stage, where in (("collect", "data/tiny"), ("train", "adapters/tiny"), ("fuse", "models/tiny")):
        (line,) = [line for line in finished.out.splitlines() if line.split()[:1] == [stage]]
        assert "up to date" in line and line.endswith(where)
    assert "Report: reports/tiny/report.html" in finished.out
    found = json.loads(cli("run", "--json").out)
    assert [stage["stage"] for stage in found["stages"]] == list(STAGES_OF_SFT)


def test_kd_stores_log_probabilities_once(project: Path, cli: Callable[..., Finished]) -> None:
    edit("[train]", '[logprobs]\nteacher = "self"\ntop_k = 16\n[train]\nobjective = "kd"')
    first = cli("run")
    assert "logprobs: not run yet" in first.err
    manifest = json.loads(Path("data/tiny/logprobs/manifest.json").read_text())
    assert (manifest["teacher"], manifest["source"]["top_k"], manifest["n_rows"]) == ("self", 16, len(SPLITS))
    assert "top 16 hold" in json.loads(Path("reports/tiny/manifests/logprobs.json").read_text())["summary"]
    assert "logprobs: up to date" in cli("run").err
    edit("top_k = 16", "top_k = 8")
    assert "logprobs: top_k changed" in cli("run").err
    edit("top_k = 8", "top_k = 0")
    assert "logprobs:" not in cli("run").err


def test_kd_needs_a_local_teacher(project: Path, cli: Callable[..., Finished]) -> None:
    refused = cli("run", "--set", "train.objective=kd", "--force")
    assert refused.code == 1
    assert "objective = 'kd' needs the probabilities of the teacher, and recorded:recorded.jsonl gives" in refused.err
    assert "collect:" not in refused.err and len(refused.err.splitlines()) == 2
