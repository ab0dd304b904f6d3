"""Code blocks are found as Markdown defines them."""

from __future__ import annotations

import pytest

from mlx_distill.code_blocks.blocks import CodeBlock, code_blocks


def test_blocks_come_in_order_with_their_languages() -> None:
    answer = "First.\n\n```python\nx = 1\n```\n\nThen\n\n```SQL\nSELECT 1;\n```\n\n```\nplain\n```\n"
    assert code_blocks(answer) == [
        CodeBlock("python", "x = 1\n"),
        CodeBlock("sql", "SELECT 1;\n"),
        CodeBlock("", "plain\n"),
    ]


@pytest.mark.parametrize("info", ["python", "Python", "py", "python3", "{.python}", 'python title="a.py"', " python "])
def test_every_usual_spelling_of_python_is_python(info: str) -> None:
    assert [block.language for block in code_blocks(f"```{info}\nx = 1\n```")] == ["python"]


def test_a_longer_fence_holds_a_shorter_one() -> None:
    assert code_blocks("````markdown\n```python\nx\n```\n````\n") == [CodeBlock("markdown", "```python\nx\n```\n")]


def test_tildes_fence_too_and_backticks_do_not_close_them() -> None:
    assert code_blocks("~~~python\n'''\n```\n'''\n~~~") == [CodeBlock("python", "'''\n```\n'''\n")]


def test_inline_code_is_not_a_block() -> None:
    assert code_blocks("Use ```x = 1``` or `y`.") == []


def test_a_block_in_a_list_loses_the_indentation_of_the_list() -> None:
    answer = "1. Like this:\n\n   ```python\n   def f():\n       return 1\n   ```\n"
    assert code_blocks(answer) == [CodeBlock("python", "def f():\n    return 1\n")]


def test_windows_line_ends_are_line_ends() -> None:
    assert code_blocks("```python\r\nx = 1\r\n```\r\n") == [CodeBlock("python", "x = 1\n")]


def test_an_unclosed_block_reaches_to_the_end_and_says_so() -> None:
    assert code_blocks("```python\nx = (") == [CodeBlock("python", "x = (\n", closed=False)]
