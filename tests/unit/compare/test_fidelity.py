"""The fidelity tables: their figures and intervals, and that they are absent without a local teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlx_distill.compare.config import CompareConfig, PairConfig
from mlx_distill.compare.metrics.fidelity import ALL, fidelity, fidelity_by_category
from mlx_distill.compare.models import Comparison
from mlx_distill.compare.run import run
from mlx_distill.models.context import ContextConfig
from mlx_distill.models.fidelity import RowFidelity
from tests.support.comparing import ROWS, make_config
from tests.support.reports import make_comparison
from tests.support.tiny import make_tiny_qwen2


def comparison(changes: list[float], categories: str = "") -> Comparison:
    """Rows of 10 tokens in families of their own: KL 0.2 a token for a, and that much more for b."""
    kinds = categories or "x" * len(changes)
    data = make_comparison([(f"f{n}", kind, 2.0, 2.0) for n, kind in enumerate(kinds)])
    a = tuple(RowFidelity(2.0, 3.0, 8.0, 7, 10) for _ in changes)
    b = tuple(RowFidelity(2.0 + 10 * change, 3.0, 8.5, 8, 10) for change in changes)
    runs = [msgspec.structs.replace(run, fidelity=found) for run, found in ((data.a, a), (data.b, b))]
    return msgspec.structs.replace(data, a=runs[0], b=runs[1], teacher="mlx:teacher")


def test_cells_hold_both_models_and_the_difference() -> None:
    table = fidelity(comparison([-0.1 - n / 1000 for n in range(9)]))
    assert table
    assert [cell.text for cell in table.rows["KL(teacher ‖ model)"][:2]] == ["0.2000", "0.0960"]
    difference = table.rows["KL(teacher ‖ model)"][2]
    assert difference.text.startswith("-0.1040 (-52.0 %) [-0.10") and difference.low and difference.low < -0.104
    assert [cell.text for cell in table.rows["KL(model ‖ teacher)"]] == ["0.3000", "0.3000", "+0.0000"]
    assert [cell.text for cell in table.rows["acceptance"]] == ["80.0 %", "85.0 %", "+5.0 points"]
    assert [cell.text for cell in table.rows["greedy agreement"]] == ["70.0 %", "80.0 %", "+10.0 points"]
    assert "teacher mlx:teacher at 90 answer tokens of 9 test rows in 9 families" in table.note


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([-0.1 - n / 1000 for n in range(9)], "is 0.2000 nats a token for base and 0.0960 for distilled (-52.0 %)"),
        ([-0.1 - n / 1000 for n in range(9)], "excludes zero"),
        ([(-1) ** n * 0.05 - 0.001 for n in range(9)], "includes zero, so it may be chance"),
        ([-0.1, -0.2], "without an interval"),
    ],
)
def test_finding_says_no_more_than_the_figures(changes: list[float], says: str) -> None:
    table = fidelity(comparison(changes))
    assert table and says in table.finding


def test_tokens_have_equal_weight_and_families_are_resampled() -> None:
    data = comparison([-0.1] * 6)
    assert data.b.fidelity
    long = RowFidelity(60.0, 3.0, 80.0, 70, 100)
    table = fidelity(msgspec.structs.replace(data, b=msgspec.structs.replace(data.b, fidelity=(long, *[long] * 5))))
    assert table and table.rows["KL(teacher ‖ model)"][1].value == pytest.approx(6.0)


def test_categories_follow_all_rows_and_are_drawn() -> None:
    table = fidelity_by_category(comparison([-0.1 - n / 1000 for n in range(9)], "sssppppppp"[:9]))
    assert table and table.plot == 4
    assert list(table.rows) == [ALL, "s", "p"]
    assert [cells[0].value for cells in table.rows.values()] == [9, 3, 6]
    assert table.rows["s"][4].low is None and table.rows["p"][4].low is not None
    assert "Fewer than 5 families have no interval" in table.note
    alone = fidelity_by_category(comparison([-0.1] * 9))
    assert alone and list(alone.rows) == [ALL]


def test_without_a_local_teacher_there_is_no_table() -> None:
    assert fidelity(make_comparison()) is None
    assert fidelity_by_category(make_comparison()) is None


def compare(config: CompareConfig | PairConfig) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    result = run(config)
    return dict(result.report.tables), result.html_file.read_text(), result.report.warnings


def test_self_without_a_context_is_the_base(tiny_student: Path, tmp_path: Path) -> None:
    config = make_config(tiny_student, tmp_path, max_tokens=4, teacher="self", teacher_context=ContextConfig(system=""))
    tables, page, warnings = compare(config)
    base, distilled, _ = tables["fidelity"].rows["KL(teacher ‖ model)"]
    assert base.value == pytest.approx(0, abs=1e-6)
    assert distilled.value > 1e-3
    assert tables["fidelity"].rows["acceptance"][0].value == pytest.approx(1, abs=1e-5)
    assert set(tables["fidelity_by_category"].rows) == {ALL, *(row[1] for row in ROWS)}
    assert 'id="plot-fidelity_by_category"' in page and "Fidelity to the teacher" in page
    assert not any("idelity" in text for text in warnings)


def test_a_context_and_another_model_are_measured(tiny_student: Path, tmp_path: Path) -> None:
    config = make_config(tiny_student, tmp_path, max_tokens=4, teacher="self")
    tables, _, _ = compare(config)
    assert tables["fidelity"].rows["KL(teacher ‖ model)"][0].value > 1e-4
    other = make_tiny_qwen2(tmp_path / "other", seed=9, hidden=128)
    tables, _, _ = compare(config.replace(teacher=f"mlx:{other}"))
    assert tables["fidelity"].rows["KL(teacher ‖ model)"][0].value > 0.1


def test_two_models_and_self(tiny_student: Path, tmp_path: Path) -> None:
    other = make_tiny_qwen2(tmp_path / "other", seed=9)
    config = make_config(tiny_student, tmp_path, max_tokens=4)
    pair = PairConfig(
        a=tiny_student,
        b=other,
        data=config.data,
        out=tmp_path / "pair",
        test_prompts=config.test_prompts,
        max_tokens=4,
        teacher="self",
        teacher_context=ContextConfig(system=""),
        model=tiny_student,
    )
    tables, _, _ = compare(pair)
    a, b, _ = tables["fidelity"].rows["KL(teacher ‖ model)"]
    assert a.value == pytest.approx(0, abs=1e-6) and b.value > 0.1


@pytest.mark.parametrize(("teacher", "warned"), [("recorded:nothing.jsonl", False), ("mlx:nowhere", True), ("", False)])
def test_other_teachers_leave_the_tables_out(tiny_student: Path, tmp_path: Path, teacher: str, warned: bool) -> None:
    tables, page, warnings = compare(make_config(tiny_student, tmp_path, max_tokens=4, teacher=teacher))
    assert not {"fidelity", "fidelity_by_category"} & set(tables)
    assert any(text.startswith(f"Fidelity to the teacher {teacher} is not") for text in warnings) == warned
    assert "Fidelity by category" not in page
