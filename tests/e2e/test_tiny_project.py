"""All stages through the entry point, one by one and by `run`, with a tiny random qwen2 student."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_distill.storage.atomic import write_jsonl
from mlx_distill.storage.package_data import package_data_path
from mlx_distill.train import TrainConfig
from mlx_distill.train.run import run
from tests.conftest import Finished
from tests.support.messages_server import MessagesServer, answer
from tests.support.small_project import write_project
from tests.support.tiny import make_tiny_qwen2

Cli = Callable[..., Finished]
SETTINGS = """
[train]
epochs = 2
learning_rate = 5e-3
max_length = 2048

[compare]
max_tokens = 16
"""


@pytest.fixture
def project(tmp_path: Path, tiny_student: Path, cli: Cli) -> Path:
    """A sample project with the tiny student."""
    assert cli("init", "demo", "--sample", cwd=tmp_path).code == 0
    (tmp_path / "demo" / "distill.toml").write_text(
        f'name = "demo"\nteacher = "recorded:sample"\nstudent = "{tiny_student}"\n{SETTINGS}'
    )
    return tmp_path / "demo"


@pytest.fixture
def small_project(tmp_path: Path, tiny_student: Path) -> Path:
    """A project of eight short answers, which runs in seconds."""
    folder = tmp_path / "demo"
    write_project(folder, tiny_student)
    settings = (folder / "distill.toml").read_text()
    settings = settings.replace('name = "tiny"', 'name = "demo"')
    settings = settings.replace("epochs = 1", "epochs = 4\nlearning_rate = 5e-3")
    (folder / "distill.toml").write_text(settings)
    return folder


def succeed(finished: Finished) -> Finished:
    assert finished.code == 0, finished.err
    assert "Traceback" not in finished.err
    return finished


def test_each_command_does_its_stage_in_float32(project: Path, cli: Cli) -> None:
    collected = json.loads(succeed(cli("collect", "--json", cwd=project)).out)
    assert (collected["n_prompts"], collected["n_answered"]) == (104, 104)
    model = Path(json.loads(succeed(cli("convert", "--json", cwd=project)).out)["path"])
    assert (project / model / "config.json").exists()
    succeed(cli("prepare", cwd=project))
    rows = {split: (project / "data/demo" / f"{split}.jsonl").read_text().splitlines() for split in ("train", "test")}
    assert len(rows["train"]) > 50
    assert json.loads(rows["test"][0])["messages"][0]["role"] == "system"
    trained = json.loads(succeed(cli("train", "--json", cwd=project)).out)
    assert trained["valid_loss"] < trained["valid_loss_before"]
    compared = succeed(cli("compare", cwd=project))
    assert "test-balanced-tree" in compared.out or "balanced" in compared.out
    report = json.loads((project / "reports/demo/report.json").read_text())
    adapter = report["b"]["adapter"]
    assert f"({adapter['checkpoint']})" in compared.out and "best, step" in adapter["checkpoint"]
    figures = report["tables"]["held_out"]["rows"]
    assert figures["loss"][1]["value"] < figures["loss"][0]["value"]
    assert f"{len(rows['test'])} test rows" in report["tables"]["held_out"]["note"]
    assert 0 <= figures["token accuracy"][0]["value"] <= 1
    fused = succeed(cli("fuse", "--json", cwd=project))
    assert (project / "models/demo/model.safetensors").exists()
    assert json.loads(fused.out)["adapter"] == f"{adapter['folder']} ({adapter['checkpoint']})"
    chatted = succeed(cli("chat", "--max-tokens", "8", cwd=project, text="Write a queue.\n"))
    assert len(chatted.out) > 1
    options = ("--model", "models/demo", "--max-tokens", "8")
    assert succeed(cli("chat", *options, cwd=project, text="Write a queue.\n")).out == chatted.out
    # `run` skips the stages that single commands did
    rerun = succeed(cli("run", cwd=project))
    for stage in ("collect", "convert", "prepare", "train", "compare", "fuse"):
        assert f"{stage}: up to date" in rerun.err


def test_a_run_in_bfloat16_lowers_the_loss(small_project: Path, cli: Cli) -> None:
    succeed(cli("run", cwd=small_project, env={"MLX_DISTILL_DTYPE": "bfloat16"}))
    report = json.loads((small_project / "reports/demo/report.json").read_text())
    base, distilled, _ = report["tables"]["held_out"]["rows"]["loss"]
    assert distilled["value"] < base["value"]


def test_train_on_policy_from_the_project_file(small_project: Path, tmp_path: Path, cli: Cli) -> None:
    """The answers come from a recording. A model on this machine scores what the student writes."""
    teacher = make_tiny_qwen2(tmp_path / "teacher", seed=8)
    file = small_project / "distill.toml"
    on_policy = f'[train]\nobjective = "on-policy"\nteacher = "mlx:{teacher}"\nrollout_tokens = 8\n'
    file.write_text(file.read_text().replace("[train]\n", on_policy))
    options = ("--set", "compare.max_tokens=8", "--json")
    stages = {
        stage["stage"]: stage for stage in json.loads(succeed(cli("run", *options, cwd=small_project)).out)["stages"]
    }
    assert "logprobs" not in stages
    assert stages["train"]["summary"].startswith("valid KL")
    adapter = small_project / "adapters/demo"
    trained = json.loads((adapter / "run.json").read_text())["result"]
    assert trained["valid_kl"] <= trained["valid_kl_before"]
    assert len((adapter / "rollouts.jsonl").read_text().splitlines()) == trained["steps"] == 12
    again = cli("train", "--force", "--rollout-samples", "2", "--epochs", "1", cwd=small_project)
    assert "cross-entropy" in succeed(again).err and "cut off" in again.err


def test_a_library_call_trains_the_same_adapter(small_project: Path, cli: Cli) -> None:
    for stage in ("collect", "convert", "prepare", "train"):
        succeed(cli(stage, cwd=small_project))
    [model] = (small_project / "models").iterdir()
    data, adapter = small_project / "data/demo", small_project / "a"
    config = TrainConfig(model=model, data=data, adapter=adapter, epochs=4, batch_size=2, learning_rate=5e-3)
    result = run(config)
    by_command = json.loads((small_project / "adapters/demo/run.json").read_text())["result"]
    assert result.valid_loss == by_command["valid_loss"]
    weights = (small_project / "adapters/demo/adapters.safetensors").read_bytes()
    assert (adapter / "adapters.safetensors").read_bytes() == weights


def test_a_new_project_runs_with_the_anthropic_teacher(tmp_path: Path, tiny_student: Path, cli: Cli) -> None:
    """Run the defaults of `init` with another student; the teacher is the real SDK against a local server."""
    written = [json.loads(line) for line in package_data_path("sample/teacher_data.jsonl").read_text().splitlines()]
    answers = {record["messages"][-1]["content"]: record["answer"] for record in written}
    with MessagesServer(lambda call: answer(answers.get(call.prompt, "Use a helper."))).running() as server:
        environment = {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": "a-key-for-tests"}
        succeed(cli("init", "mine", cwd=tmp_path))
        overrides = ("--set", f"student={tiny_student}", "--set", "train.epochs=1", "--set", "compare.max_tokens=8")
        ran = json.loads(succeed(cli("run", "--json", *overrides, cwd=tmp_path / "mine", env=environment)).out)
        n_calls = len(server.calls)
        succeed(cli("run", *overrides, cwd=tmp_path / "mine", env=environment))
    assert ran["stages"][1]["summary"].startswith("104 of 104 answered")
    assert n_calls == 104 + 4 == len(server.calls), "one call a prompt and one a test prompt, none twice"
    report = json.loads((tmp_path / "mine/reports/mine/report.json").read_text())
    assert all(prompt["teacher"]["text"] for prompt in report["answers"])


def test_a_project_with_a_context_learns_from_the_student_itself(tmp_path: Path, cli: Cli) -> None:
    student = make_tiny_qwen2(tmp_path / "student", dtype="float32")
    succeed(cli("init", "mine", "--context", "--student", str(student), cwd=tmp_path))
    prompts = [{"id": f"p{n}", "prompt": f"Say something about {n} queues."} for n in range(24)]
    write_jsonl(tmp_path / "mine/data/prompts.jsonl", prompts)
    overrides = ("collect.max_tokens=300", "collect.temperature=1.5", "train.epochs=1", "compare.max_tokens=8")
    arguments = [part for override in overrides for part in ("--set", override)]
    keep_all = ("--set", "prepare.filter.require_parsing_code=false", "--set", "prepare.filter.dedup_threshold=0")
    ran = json.loads(succeed(cli("run", "--json", *arguments, *keep_all, cwd=tmp_path / "mine")).out)

    assert [stage["stage"] for stage in ran["stages"]][1:4] == ["collect", "prepare", "logprobs"]
    data = tmp_path / "mine/data/mine"
    record = json.loads((data / "teacher_data.jsonl").read_text().splitlines()[0])
    assert (record["teacher"], len(record["messages"])) == ("self:student", 6)
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    assert {len(row["messages"]) for row in rows} == {3}
