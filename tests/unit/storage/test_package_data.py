"""Packaged data in a checkout; tests/e2e/test_wheel.py covers an installed wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_distill.errors import MissingError
from mlx_distill.storage.package_data import package_data_path
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("name", ["prompts.jsonl", "test_prompts.jsonl", "sample", "sample/teacher_data.jsonl"])
def test_an_editable_install_finds_the_data_of_the_checkout(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert package_data_path(name) == REPOSITORY / "data" / name


def test_a_file_that_is_not_packaged_is_refused() -> None:
    with pytest.raises(MissingError, match=r"none\.jsonl"):
        package_data_path("none.jsonl")
