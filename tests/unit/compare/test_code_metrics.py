"""Code blocks that parse, and style features in them."""

from __future__ import annotations

from mlx_distill.code_blocks.blocks import Syntax
from mlx_distill.compare.metrics.code_parses import code_parses
from mlx_distill.compare.metrics.style_features import python_features, sql_features, style_features
from mlx_distill.compare.report import CheckedBlock
from tests.support.reports import make_answered, make_comparison

POOL = """
def helper(x: int) -> int:
    \"\"\"Double.\"\"\"
    return 2 * x

class Pool:
    def size(self, n: int, *more: int) -> int:
        with open("x") as file:
            return helper(n)

    def bare(self, n):
        return self.size(n)
"""


def test_python_features_are_counted_by_function_and_block() -> None:
    assert python_features(POOL) == {
        "docstrings": [True, False, False],
        "type hints": [True, True, False],
        "helper functions": [True, True, False],
        "context managers": [True],
    }
    assert python_features("def f(n):\n    return f(n - 1)")["helper functions"] == [False]


def test_sql_features_are_counted_by_statement() -> None:
    code = "WITH a AS (SELECT 1 AS x) SELECT * FROM a JOIN b ON a.x = b.x; SELECT SUM(x) OVER (PARTITION BY y) FROM t;"
    assert sql_features(code) == {"CTEs": [True, False], "window functions": [False, True], "joins": [True, False]}


def test_blocks_count_if_they_are_complete_and_parse() -> None:
    base = "```python\nx = 1\n```\n```python\nx = \n```\n```bash\nls\n```"
    answers = [make_answered(base, "```python\nx = 1\n", "```sql\nSELECT 1\n```\n```java\nclass A {}\n```")]
    assert [block.syntax for block in answers[0].a.blocks] == [Syntax.PARSED, Syntax.BROKEN, Syntax.NOT_CHECKED]
    assert answers[0].b.blocks == (CheckedBlock("python", Syntax.BROKEN, problem="the answer ends inside this block"),)
    table = code_parses(make_comparison(answers=answers))
    assert table
    texts = {label: [cell.text for cell in cells] for label, cells in table.rows.items()}
    assert texts == {
        "Python blocks that parse": ["1 of 2", "0 of 1", "-"],
        "SQL blocks that parse": ["-", "-", "1 of 1"],
        "Java blocks that parse": ["-", "-", "1 of 1"],
    }
    assert "Not checked: bash." in table.note
    assert "No code was run." in table.note
    assert "Python blocks that parse: base 1 of 2, distilled 0 of 1" in table.finding


def test_answers_without_code_have_no_tables() -> None:
    data = make_comparison(answers=[make_answered("No code.", "None.")])
    assert code_parses(data) is None
    assert style_features(data) is None


def test_style_features_that_differ_are_named() -> None:
    plain, hinted = ("```python\ndef f()" + hint + ":\n    return 1\n```" for hint in ("", " -> int"))
    table = style_features(make_comparison(answers=[make_answered(plain, hinted)]))
    assert table
    assert table.finding == "Style of the code differs in: type hints (base 0 of 1, distilled 1 of 1)."
    assert table.columns == ("base", "distilled")
