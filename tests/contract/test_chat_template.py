"""The trial of a chat template, in a real child process: hostile templates are refused within limits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlx_distill.convert import ConvertConfig
from mlx_distill.convert.run import run
from mlx_distill.errors import InputError
from mlx_distill.models.load import load_tokenizer
from mlx_distill.models.tokenize import check_chat_template

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
HUGE_TEXT = "{{ 'a' * 10 ** 11 }}"


@pytest.mark.parametrize(
    ("template", "message", "max_seconds"),
    [
        (ENDLESS, "does not finish within 3 s", 3),
        (HUGE_TEXT, "MemoryError", 300),
        ("{{ raise_exception('no such chat') }}", "no such chat", 300),
        ("{% for %}", "TemplateSyntaxError", 300),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "SecurityError", 300),
    ],
)
def test_a_hostile_template_is_refused(template: str, message: str, max_seconds: int, tiny_student: Path) -> None:
    tokenizer = load_tokenizer(tiny_student)
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=message):
        check_chat_template(tokenizer, max_seconds=max_seconds)


def test_convert_tries_the_template_and_leaves_nothing(tiny_student: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_student, model)
    (model / "chat_template.jinja").write_text("{{ raise_exception('hostile') }}")
    with pytest.raises(InputError, match="hostile"):
        run(ConvertConfig(source=str(model), out=tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("model", "home")] == []
