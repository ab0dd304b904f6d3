"""Two adapters or models on the same rows: the figures are each one's own, the names theirs, other data is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_distill.cli import main
from mlx_distill.compare.config import CompareConfig, PairConfig
from mlx_distill.compare.run import run
from mlx_distill.errors import InputError, MissingError
from tests.support.adapters import make_adapter
from tests.support.comparing import ROWS, example, make_data, make_prompts, write_lines
from tests.support.tiny import make_tiny_qwen2


@pytest.fixture(scope="module")
def adapters(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two adapters of the tiny model."""
    folder = tmp_path_factory.mktemp("adapters")
    return make_adapter(tiny_student, folder / "mild", size=0.05), make_adapter(tiny_student, folder / "wild", seed=3)


@pytest.fixture
def pair(tiny_student: Path, adapters: tuple[Path, Path], tmp_path: Path) -> PairConfig:
    return PairConfig(
        first=adapters[0],
        second=adapters[1],
        model=tiny_student,
        data=make_data(tmp_path / "data"),
        out=tmp_path / "out",
        test_prompts=make_prompts(tmp_path / "prompts.jsonl"),
        max_tokens=12,
    )


def alone(pair: PairConfig, adapter: Path) -> CompareConfig:
    """The model without and with one of them."""
    assert pair.model
    return CompareConfig(
        model=pair.model,
        adapter=adapter,
        data=pair.data,
        out=pair.out.parent / adapter.name,
        test_prompts=pair.test_prompts,
        max_tokens=pair.max_tokens,
    )


def trained_from(folder: Path, data: Path, n_train_rows: int = 1) -> None:
    """What training writes beside an adapter."""
    record = {"settings": {"model": "tiny-qwen2", "data": str(data)}, "result": {"n_train_rows": n_train_rows}}
    (folder / "run.json").write_text(json.dumps(record))


def test_each_side_has_the_figures_that_it_has_alone(pair: PairConfig) -> None:
    result = run(pair)
    for name, adapter in (("base", pair.first), ("distilled", pair.second)):
        own = run(alone(pair, adapter))
        assert getattr(result.test, name) == own.test.distilled
        assert [getattr(one, name).text for one in result.answers] == [one.distilled.text for one in own.answers]
    assert result.test.base != result.test.distilled
    assert result.names == {"base": "mild", "distilled": "wild", "teacher": "teacher"}


def test_models_and_adapters_mix(pair: PairConfig, tmp_path: Path) -> None:
    assert pair.model
    other = make_tiny_qwen2(tmp_path / "other", seed=9)
    own = run(alone(pair, pair.first))
    with_base = run(replace(pair, second=pair.model))
    assert (with_base.test.base, with_base.test.distilled) == (own.test.distilled, own.test.base)
    with_other = run(replace(pair, second=other))
    assert with_other.test.base == own.test.distilled
    assert with_other.test.distilled != own.test.base
    assert with_other.names["distilled"] == "other"


def test_a_model_against_itself_under_two_seeds_shows_no_difference(pair: PairConfig) -> None:
    """An A/A comparison: every answer is drawn anew, and each interval of a difference includes zero."""
    prompts = [{"id": f"q{n}", "category": "python", "prompt": f"Write a function, number {n}."} for n in range(24)]
    same = replace(
        pair, second=pair.first, temperature=1.0, max_tokens=200, test_prompts=write_lines(pair.test_prompts, prompts)
    )
    result = run(same)
    assert list(result.names.values())[:2] == ["mild", "mild again"]
    assert all(one.base.text != one.distilled.text for one in result.answers)
    assert vars(result.test.difference.loss) == {"value": 0.0, "low": 0.0, "high": 0.0}
    report = json.loads(result.report.read_text(encoding="utf-8"))
    means = report["answer_figures"]["means"]
    assert set(means) == {"finished", "length", "repetition"}
    varied = {
        name: measure["difference"] for name, measure in means.items() if measure["difference"]["low"] is not None
    }
    assert "length" in varied, "some answers must end before the limit, or this shows nothing"
    assert all(change["low"] <= 0 <= change["high"] for change in varied.values())
    assert all(means[name]["difference"]["value"] == 0 for name in means.keys() - varied.keys())
    assert "sampled with two seeds" in result.markdown.read_text(encoding="utf-8")


def test_every_form_of_the_report_calls_the_sides_by_their_names(pair: PairConfig) -> None:
    result = run(pair)
    for file in (result.page, result.markdown):
        text = re.sub(r"<style>.*?</style>|class=\"[^\"]*\"", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "mild and wild compared" in text
        assert "wild minus mild" in text
        assert not re.findall(r"\b(?:base|distilled)\b(?!-uri)", text, re.IGNORECASE)
    data = json.loads(result.report.read_text(encoding="utf-8"))
    assert {key: side["name"] for key, side in data["sides"].items()} == {"base": "mild", "distilled": "wild"}


def test_folders_of_one_name_are_told_apart_and_the_report_has_a_place_of_its_own(
    pair: PairConfig, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        shutil.copytree(pair.first, tmp_path / name / "adapter")
    same = replace(pair, first=tmp_path / "one" / "adapter", second=tmp_path / "two" / "adapter", out=None)
    assert same.out == Path("reports/adapter-vs-adapter")
    assert list(run(replace(same, out=pair.out)).names.values())[:2] == ["one/adapter", "two/adapter"]


def test_rows_of_a_family_that_one_side_learnt_from_are_refused(pair: PairConfig, tmp_path: Path) -> None:
    folder = tmp_path / "learnt"
    shutil.copytree(pair.second, folder)
    other = tmp_path / "other-data"
    write_lines(other / "train.jsonl", [example("elsewhere", "sql", "What is a view?", "A stored query.")])
    write_lines(other / "valid.jsonl", [example(*ROWS[2])])
    trained_from(folder, other)
    with pytest.raises(InputError, match=r"test\.jsonl is of other data than .*learnt was trained from") as caught:
        run(replace(pair, second=folder))
    assert "(queue)" in str(caught.value)
    assert not pair.out.exists()
    write_lines(other / "valid.jsonl", [example("pile", "sql", ROWS[3][2], "The same question, another family.")])
    with pytest.raises(InputError, match=r"\(pile\)"):
        run(replace(pair, second=folder))
    write_lines(other / "valid.jsonl", [example("heap", "sql", "What is a heap?", "A tree.")])
    assert run(replace(pair, second=folder)).cautions == ()


def test_rows_that_are_no_longer_those_of_training_are_a_caution(pair: PairConfig, tmp_path: Path) -> None:
    folder = tmp_path / "learnt"
    shutil.copytree(pair.second, folder)
    trained_from(folder, tmp_path / "gone", n_train_rows=65)
    assert "was trained on 65 rows of" in run(replace(pair, second=folder)).cautions[0]


def test_sides_that_read_the_rows_as_other_tokens_are_refused(pair: PairConfig, tmp_path: Path) -> None:
    other = make_tiny_qwen2(tmp_path / "other")
    settings = json.loads((other / "tokenizer_config.json").read_text())
    settings["chat_template"] = settings["chat_template"].replace("<|im_start|>", "<|im_start|>the ")
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="as different tokens"):
        run(replace(pair, second=other))


def test_what_is_neither_adapter_nor_model_is_refused(pair: PairConfig, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="neither an adapter"):
        run(replace(pair, second=tmp_path))
    with pytest.raises(InputError, match=r"does not say which model.*\n?.*--model"):
        run(replace(pair, model=None))


def test_the_model_that_an_adapter_names_is_taken(pair: PairConfig, tmp_path: Path) -> None:
    folder = tmp_path / "named"
    shutil.copytree(pair.first, folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "model": str(pair.model)}))
    assert pair.model
    result = run(replace(pair, first=folder, second=pair.model, model=None))
    assert result.test.distilled == run(alone(pair, pair.first)).test.base


def test_the_command_takes_two_folders_or_none(
    pair: PairConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def compare(*words: object) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["compare", *map(str, words)])
        return int(str(ended.value.code))

    where = ("--model", pair.model, "--data", pair.data, "--test-prompts", pair.test_prompts, "--max-tokens", 8)
    assert compare(pair.first, pair.second, *where) == 0
    assert (tmp_path / "reports/mild-vs-wild/report.html").exists()
    assert re.search(r"^ +mild +wild +difference", capsys.readouterr().out, re.MULTILINE)
    assert compare(pair.first, *where) == 2
    assert "Name two" in capsys.readouterr().err
    assert compare(pair.first, pair.second, "--adapter", pair.first, *where) == 2
