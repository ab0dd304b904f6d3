"""Code in a streaming answer: highlighted, and never a character more or less than the model wrote."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_distill.chat.highlight import CodePainter, plain

ANSWER = '''\
Here is 你好 🙂, as asked:

```python
def count(text: str) -> int:
    """How many words,
    over two lines."""
    return len(text.split())
```

And `inline` code; then SQL:

````sql
SELECT name
```
````
Done.'''
DIM = "\x1b[2m"


def painted(pieces: list[str]) -> str:
    painter = CodePainter()
    return "".join([*map(painter.feed, pieces), painter.end()])


def test_code_is_coloured_and_prose_is_not() -> None:
    lines = painted([ANSWER]).split("\n")
    assert lines[0] == "Here is 你好 🙂, as asked:"
    assert lines[2] == f"{DIM}```python\x1b[0m"
    assert "\x1b[" in lines[3] and plain(lines[3]) == "def count(text: str) -> int:"
    assert lines[9] == "And `inline` code; then SQL:"
    assert plain(lines[13]) == "```" and not lines[13].startswith(DIM), "three backticks do not close four"
    assert lines[14] == f"{DIM}````\x1b[0m"
    assert lines[-1] == "Done."


def test_a_string_over_two_lines_keeps_its_colour() -> None:
    lines = painted([ANSWER]).split("\n")
    color = lines[4].strip().split('"')[0]
    assert color.startswith("\x1b[") and color in lines[5]


def test_prose_is_written_at_once_and_code_line_by_line() -> None:
    painter = CodePainter()
    assert painter.feed("Hel") == "Hel"
    assert painter.feed("lo `a`\n") == "lo `a`\n"
    assert painter.feed("``") == ""
    assert painter.feed("a") == "``a"
    assert painter.feed("\n```py") == "\n"
    assert plain(painter.feed("thon\nx =")) == "```python\n"
    assert plain(painter.feed(" 1\ny")) == "x = 1\n"
    assert plain(painter.end()) == "y"


def test_a_language_that_nobody_knows_and_none_at_all_stay_plain() -> None:
    for name in ("", "klingon", "python3.11 title=x"):
        text = f"```{name}\nif x: pass\n```\n"
        assert plain(painted([text])) == text
    assert painted(["```klingon\nif x: pass\n"]).endswith("\nif x: pass\n")


@given(st.text(alphabet=st.sampled_from("`~ \n\tpy\"#a'世"), max_size=60), st.integers(1, 5))
def test_no_character_is_lost_or_added_however_the_pieces_are_cut(text: str, size: int) -> None:
    text = text.replace("~", "```python\n")
    assert plain(painted([text[at : at + size] for at in range(0, len(text), size)])) == text


@given(st.integers(1, 40))
def test_the_pieces_do_not_change_the_colours(size: int) -> None:
    assert painted([ANSWER[at : at + size] for at in range(0, len(ANSWER), size)]) == painted([ANSWER])
