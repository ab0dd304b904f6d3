"""Manifests: every change of settings, inputs and outputs gives a reason to run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_distill.run.manifest import Manifest, known_states

INPUTS = [Path("in.txt"), Path("model")]
SETTINGS = {"epochs": 3}


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """A stage that read in.txt and the folder model/, and wrote out.txt."""
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("in")
    Path("model").mkdir()
    Path("model/weights").write_text("w")
    begun = Manifest.begin("train", SETTINGS, INPUTS, {})
    Path("out.txt").write_text("out")
    return begun.finish([Path("out.txt")], 1.5, "loss 1.0")


def test_saved_manifest_is_current(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path / "manifests" / "train.json")
    assert Manifest.load(tmp_path / "manifests" / "train.json") == manifest
    assert manifest.reason_to_run(SETTINGS, INPUTS) == ""
    assert set(known_states(tmp_path / "manifests")) == {"in.txt", "model/weights", "out.txt"}


def test_each_change_is_a_reason(manifest: Manifest) -> None:
    assert manifest.reason_to_run({"epochs": 4}, INPUTS) == "epochs changed"
    assert manifest.reason_to_run({**SETTINGS, "rank": 8}, INPUTS) == "rank changed"
    Path("in.txt").write_text("other")
    assert manifest.reason_to_run(SETTINGS, INPUTS) == "in.txt changed"
    Path("in.txt").write_text("in")
    assert manifest.reason_to_run(SETTINGS, INPUTS) == ""
    Path("model/more").write_text("m")
    assert manifest.reason_to_run(SETTINGS, INPUTS) == "more changed"
    Path("model/more").unlink()
    Path("out.txt").write_text("edited")
    assert manifest.reason_to_run(SETTINGS, INPUTS) == "out.txt changed"
    assert not manifest.outputs_unchanged()
    Path("out.txt").unlink()
    assert manifest.reason_to_run(SETTINGS, INPUTS) == "out.txt is missing"
    assert manifest.outputs_unchanged()  # there is nothing to lose


def test_incomplete_result_is_a_reason(manifest: Manifest) -> None:
    assert manifest.finish([], 1.0, "", "2 answers missing").reason_to_run(SETTINGS, INPUTS) == "2 answers missing"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": "x"}', '{"inputs": {"a": {}}, "outputs": {}}', "\xff"])
def test_unreadable_manifest_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.json").write_text(text, encoding="latin-1")
    assert Manifest.load(tmp_path / "train.json") is None
