"""Code blocks are found as Markdown means them, parse faults are named, and a shape forgets names."""

from __future__ import annotations

import pytest

from mlx_distill.code_blocks import CodeBlock, code_blocks, parse_fault, python_fault, shape


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


def test_inline_code_is_no_block() -> None:
    assert code_blocks("Use ```x = 1``` or `y`.") == []


def test_a_block_in_a_list_loses_the_indentation_of_the_list() -> None:
    answer = "1. Like this:\n\n   ```python\n   def f():\n       return 1\n   ```\n"
    assert code_blocks(answer) == [CodeBlock("python", "def f():\n    return 1\n")]


def test_windows_line_ends_are_line_ends() -> None:
    assert code_blocks("```python\r\nx = 1\r\n```\r\n") == [CodeBlock("python", "x = 1\n")]


def test_an_unclosed_block_reaches_to_the_end_and_says_so() -> None:
    assert code_blocks("```python\nx = (") == [CodeBlock("python", "x = (\n", closed=False)]


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("x = 1\n", ""),
        ("await fetch()\n", ""),
        ('pattern = "\\d"\n', ""),
        ("def f(:\n    pass\n", "line 1: "),
        ("x = 1\n  y = 2\n", "line 2: unexpected indent"),
        ("print 'old'\n", "line 1: Missing parentheses"),
        ("x = 1\x00", "null byte"),
    ],
)
def test_a_fault_is_named_with_its_line(code: str, fault: str) -> None:
    found = python_fault(code)
    assert fault in found if fault else found == ""


def test_code_beyond_the_parsers_stack_is_a_fault_not_a_crash() -> None:
    assert python_fault("-" * 100_000 + "1")


def test_a_language_without_a_parser_is_not_judged() -> None:
    assert parse_fault(CodeBlock("cobol", "?")) is None
    assert parse_fault(CodeBlock("python", "x = 1")) == ""


def test_renaming_and_comments_leave_the_shape() -> None:
    code = 'def height(node: Node) -> int:\n    """Height."""\n    return max(node.left, 1)  # one\n'
    renamed = 'def depth(top: Knot) -> long:\n    """How deep\n    it is."""\n\n    return most(top.a, 27)\n'
    assert shape(CodeBlock("python", code)) == shape(CodeBlock("python", renamed))
    assert shape(CodeBlock("python", code)) != shape(CodeBlock("python", code.replace("return", "yield")))


@pytest.mark.parametrize(
    ("language", "code", "expected"),
    [
        ("sql", "SELECT a FROM left -- all", ("select", "name", "from", "left")),
        ("python", "left // 2 # half", ("name", "/", "/", "number")),
        ("java", "i--; // 'less'", ("name", "-", "-", ";")),
        ("go", 'for i := "a" // b', ("name", "name", ":", "=", "text")),
    ],
)
def test_keywords_and_comments_are_those_of_the_language(language: str, code: str, expected: tuple[str, ...]) -> None:
    assert shape(CodeBlock(language, code)) == expected
