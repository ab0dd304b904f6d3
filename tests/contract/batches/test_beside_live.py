"""Batches and single requests in one journal, and the commands around them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_distill.cli import main
from mlx_distill.collect.config import CollectConfig
from mlx_distill.collect.run import estimate
from mlx_distill.errors import DistillError, InputError
from mlx_distill.events import Event
from mlx_distill.formatting import format_usd
from mlx_distill.run import pipeline
from mlx_distill.run.stages import COLLECT
from tests.support.batches_server import CANCELED, EXPIRED, BatchesServer, errored, succeeded
from tests.support.batching import HALF_USD, answers, interrupted
from tests.support.collecting import KEY, REAL_USD, Collect, Records, notes

# Batch and live in one journal


def test_live_asks_only_what_no_batch_is_answering(server: BatchesServer, collect: Collect, tmp_path: Path) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, n=3, batch=True)
    result = collect(n=5)
    assert sorted(server.prompts) == ["Prompt 3", "Prompt 4"]
    assert (result.n_answered, result.n_in_batches, result.failed) == (2, 3, ())
    assert result.total_usage.total.n_pending == 3
    server.looks_until_ended = 1
    result = collect(n=5)
    assert (result.n_answered, result.n_new, result.n_in_batches) == (5, 3, 0)
    assert len(server.calls) == 2
    assert result.total_usage.total_usd == pytest.approx(2 * REAL_USD + 3 * HALF_USD)
    texts = answers(tmp_path / "out")
    assert [texts[f"Prompt {n}"].split()[0] for n in range(5)] == ["Batched"] * 3 + ["Answer"] * 2


def test_wait_brings_in_what_is_under_way_and_asks_nothing_new(server: BatchesServer, collect: Collect) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, n=3, batch=True)
    server.looks_until_ended = 4
    server.outcome = lambda prompt, nth: EXPIRED if (prompt, nth) == ("Prompt 1", 1) else succeeded("Fine.")
    result = collect(n=5, wait=True)
    assert (result.n_answered, result.n_in_batches) == (3, 0)
    assert server.calls == []
    assert [len(batch.requests) for batch in server.batches.values()] == [3, 1]


def test_answers_of_removed_prompts_are_kept(server: BatchesServer, collect: Collect, records: Records) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, "One", "Two", batch=True)
    server.looks_until_ended = 1
    assert collect("Two", "Three", wait=True).n_answered == 1
    assert len(records()) == 2
    assert collect("One", "Two", max_tokens=5000).n_new == 0
    assert server.calls == []


def test_a_batch_of_another_teacher_is_left_alone(server: BatchesServer, collect: Collect, events: list[Event]) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, n=2, batch=True)
    result = collect(n=2, teacher="anthropic:claude-haiku-4-5")
    assert (result.n_answered, result.n_in_batches) == (2, 0)
    assert any("anthropic:claude-sonnet-4-6" in line and "pending" in line for line in notes(events))


def test_live_run_asks_what_a_batch_left_unanswered(server: BatchesServer, collect: Collect) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, n=4, batch=True)
    server.looks_until_ended = 1
    fates = {"Prompt 0": EXPIRED, "Prompt 1": CANCELED, "Prompt 2": errored("invalid_request_error", "no")}
    server.outcome = lambda prompt, nth: fates.get(prompt, succeeded("Fine."))
    result = collect(n=4)
    assert (result.n_answered, result.failed) == (4, ())
    assert sorted(server.prompts) == ["Prompt 0", "Prompt 1", "Prompt 2"]


# The command


@pytest.fixture
def project(tmp_path: Path, server: BatchesServer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("One\nTwo\nThree\n")
    return [
        "collect", "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out"), "--teacher",
        "anthropic:claude-sonnet-4-6",
    ]  # fmt: skip


def command(*arguments: str) -> int:
    """Run it; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_a_dry_run_says_what_a_batch_costs_and_what_is_under_way(
    server: BatchesServer, collect: Collect, project: list[str], tmp_path: Path
) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, "One", "Two", batch=True)
    file = tmp_path / "prompts.txt"
    file.write_text("One\nTwo\nThree\n")
    config = CollectConfig(out=tmp_path / "out", teacher="anthropic:claude-sonnet-4-6", prompts=file, batch=True)
    expected = estimate(config)
    assert (expected.n_prompts, expected.n_to_ask, expected.n_in_batches) == (3, 1, 2)
    assert expected.usd is not None
    assert expected.batch_usd == pytest.approx(expected.usd / 2)


def test_pending_batch_is_a_normal_state(
    server: BatchesServer, collect: Collect, project: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, "One", "Two", batch=True)
    (Path(project[2])).write_text("One\nTwo\nThree\n")
    assert command(*project) == 0
    printed = capsys.readouterr()
    assert "1 of 3 answered" in printed.out
    assert "2 prompts in batches: run the command again with --wait" in printed.out
    server.looks_until_ended = 1
    assert command(*project, "--wait") == 0
    assert "batches saved" in capsys.readouterr().out
    for file in (Path(project[4])).rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes()


def test_a_run_waits_for_what_is_under_way(server: BatchesServer, collect: Collect, tmp_path: Path) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, "One", "Two", batch=True)
    server.looks_until_ended = server.batches["msgbatch_01"].n_looks + 3
    file = tmp_path / "prompts.txt"
    file.write_text("One\nTwo\nThree\n")
    config = CollectConfig(
        out=tmp_path / "out", teacher="anthropic:claude-sonnet-4-6", prompts=file, first_wait_seconds=0.01
    )
    outcome = pipeline.update_stage(COLLECT, config, tmp_path / "manifests")
    assert outcome.summary == f"3 of 3 answered, {format_usd(REAL_USD + 2 * HALF_USD)}"
    assert server.prompts == ["Three"]
    assert pipeline.update_stage(COLLECT, config.replace(batch=True), tmp_path / "manifests").skipped


def test_wait_without_a_batch_says_so_and_what_is_missing(
    server: BatchesServer, project: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*project, "--wait") == 1
    said = capsys.readouterr().err
    assert "3 of 3 answers are missing" in said
    assert "run the same command without --wait" in said
    assert server.calls == []


@pytest.mark.parametrize("teacher", ["openai:some-model@http://localhost:9/v1", "recorded:sample"])
def test_teacher_without_batches_is_refused(
    project: list[str], tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*project[:-1], teacher, "--batch") == 1
    assert "has no batches" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_batch_files_are_named(server: BatchesServer, collect: Collect, tmp_path: Path) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, n=2, batch=True)
    [file] = (tmp_path / "out" / "batches").iterdir()
    whole = file.read_text()
    for damage in ("{\n", whole.replace('"prompt"', '"promt"'), whole.splitlines()[0] + "\n"):
        file.write_text(damage)
        with pytest.raises(InputError, match=file.name):
            collect(n=2)
    file.unlink()
    with pytest.raises(DistillError, match=file.name) as raised:
        collect(n=2)
    assert "spending.json" in raised.value.next_step
    file.write_text(whole)
    server.looks_until_ended = 1
    assert collect(n=2).n_answered == 2
    assert server.calls == []
