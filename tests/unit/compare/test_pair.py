"""Two adapters or models on the same rows: each has its own figures and name; overlapping data is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from mlx_distill.cli import main
from mlx_distill.compare.config import CompareConfig, CompareResult, PairConfig
from mlx_distill.compare.run import run
from mlx_distill.errors import InputError, MissingError
from tests.support.adapters import make_adapter
from tests.support.comparing import ROWS, example, make_data, make_prompts, write_lines
from tests.support.tiny import CHAT_TEMPLATE, edit_json, make_tiny_qwen2


@pytest.fixture(scope="module")
def adapters(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two adapters of the tiny model."""
    folder = tmp_path_factory.mktemp("adapters")
    return make_adapter(tiny_student, folder / "mild", size=0.05), make_adapter(tiny_student, folder / "wild", seed=3)


@pytest.fixture
def pair(tiny_student: Path, adapters: tuple[Path, Path], tmp_path: Path) -> PairConfig:
    return PairConfig(
        a=adapters[0],
        b=adapters[1],
        model=tiny_student,
        data=make_data(tmp_path / "data"),
        out=tmp_path / "out",
        test_prompts=make_prompts(tmp_path / "prompts.jsonl"),
        max_tokens=12,
    )


def losses(result: CompareResult) -> tuple[float | None, ...]:
    """The losses of both models."""
    return tuple(cell.value for cell in result.report.tables["held_out"].rows["loss"][:2])


def names(result: CompareResult) -> tuple[str, str]:
    return result.report.a.name, result.report.b.name


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
    """Write the record that training leaves next to an adapter."""
    record = {"settings": {"model": "tiny-qwen2", "data": str(data)}, "result": {"n_train_rows": n_train_rows}}
    (folder / "run.json").write_text(json.dumps(record))


def test_each_model_has_the_figures_that_it_has_alone(pair: PairConfig) -> None:
    result = run(pair)
    for column, (voice, adapter) in enumerate((("a", pair.a), ("b", pair.b))):
        own = run(alone(pair, adapter))
        assert losses(result)[column] == losses(own)[1]
        assert [getattr(one, voice).text for one in result.report.answers] == [one.b.text for one in own.report.answers]
    assert losses(result)[0] != losses(result)[1]
    assert names(result) == ("mild", "wild")


def test_models_and_adapters_mix(pair: PairConfig, tmp_path: Path) -> None:
    assert pair.model
    own = run(alone(pair, pair.a))
    named = tmp_path / "named"  # an adapter may name its model
    shutil.copytree(pair.a, named)
    edit_json(named / "adapter_config.json", model=str(pair.model))
    assert losses(run(pair.replace(a=named, b=pair.model, model=None))) == losses(own)[::-1]
    with_other = run(pair.replace(b=make_tiny_qwen2(tmp_path / "other", seed=9)))
    assert losses(with_other)[0] == losses(own)[1]
    assert losses(with_other)[1] != losses(own)[0]
    assert names(with_other)[1] == "other"


def test_a_model_against_itself_shows_sampling_noise(pair: PairConfig) -> None:
    prompts = [{"id": f"q{n}", "category": "python", "prompt": f"Write a function, number {n}."} for n in range(24)]
    same = pair.replace(b=pair.a, temperature=1.0, max_tokens=200, test_prompts=write_lines(pair.test_prompts, prompts))
    result = run(same)
    assert names(result) == ("mild", "mild again")
    assert all(one.a.text != one.b.text for one in result.report.answers)
    assert result.report.tables["held_out"].rows["loss"][2].value == 0.0
    rows = result.report.tables["completion"].rows
    differences = [rows[name][-1] for name in ("finished", "length in tokens", "repetition")]
    assert differences[1].low is not None, "some answers must end before the limit, or this shows nothing"
    for cell in differences:
        if cell.low is None or cell.high is None:
            assert cell.value == 0
        else:
            assert cell.low <= 0 <= cell.high
    assert "sampled with two seeds" in result.markdown_file.read_text(encoding="utf-8")


def test_every_form_of_the_report_uses_the_names(pair: PairConfig) -> None:
    result = run(pair)
    for file in (result.html_file, result.markdown_file):
        text = re.sub(r"<style>.*?</style>|class=\"[^\"]*\"", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "mild and wild compared" in text
        assert "wild minus mild" in text
        assert not re.findall(r"\b(?:base|distilled)\b(?!-uri)", text, re.IGNORECASE)
    data = json.loads(result.json_file.read_text(encoding="utf-8"))
    assert (data["a"]["name"], data["b"]["name"]) == ("mild", "wild")


def test_folders_with_one_name_are_told_apart(pair: PairConfig, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(pair.a, tmp_path / name / "adapter")
    same = pair.replace(a=tmp_path / "one" / "adapter", b=tmp_path / "two" / "adapter", out=Path())
    assert same.out == Path("reports/adapter-vs-adapter")
    assert names(run(same.replace(out=pair.out))) == ("one/adapter", "two/adapter")


def test_rows_seen_in_training_are_refused(pair: PairConfig, tmp_path: Path) -> None:
    folder, other = tmp_path / "trained", tmp_path / "other-data"
    shutil.copytree(pair.b, folder)
    write_lines(other / "train.jsonl", [example("elseoptions", "sql", "What is a view?", "A stored query.")])
    trained_from(folder, other)
    for row, family in ((ROWS[2], "queue"), (("pile", "sql", ROWS[3][2], "Another family."), "pile")):
        write_lines(other / "valid.jsonl", [example(*row)])
        with pytest.raises(InputError, match=rf"overlaps with the rows that .*trained was trained on.*\({family}\)"):
            run(pair.replace(b=folder))
    assert not pair.out.exists()
    write_lines(other / "valid.jsonl", [example("heap", "sql", "What is a heap?", "A tree.")])
    assert run(pair.replace(b=folder)).report.warnings == ()
    trained_from(folder, tmp_path / "gone", n_train_rows=65)
    assert "was trained on 65 rows of" in run(pair.replace(b=folder)).report.warnings[0]


def test_different_tokens_are_refused(pair: PairConfig, tmp_path: Path) -> None:
    other = make_tiny_qwen2(tmp_path / "other")
    edit_json(other / "tokenizer_config.json", chat_template=CHAT_TEMPLATE.replace("<|im_start|>", "<|im_start|>the "))
    with pytest.raises(InputError, match="as different tokens"):
        run(pair.replace(b=other))


def test_a_folder_without_adapter_or_model_is_refused(pair: PairConfig, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="neither an adapter"):
        run(pair.replace(b=tmp_path))
    with pytest.raises(InputError, match=r"does not name its base model.*\n?.*--model"):
        run(pair.replace(model=None))


def test_the_command_takes_two_folders_or_none(
    pair: PairConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def compare(*words: object) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["compare", *map(str, words)])
        return int(str(ended.value.code))

    options = ("--model", pair.model, "--data", pair.data, "--test-prompts", pair.test_prompts, "--max-tokens", 8)
    assert compare(pair.a, pair.b, *options) == 0
    assert (tmp_path / "reports/mild-vs-wild/report.html").exists()
    assert re.search(r"^Held-out rows +mild +wild +difference", capsys.readouterr().out, re.MULTILINE)
    assert compare(pair.a, *options) == 2
    assert "Name two" in capsys.readouterr().err
    assert compare(pair.a, pair.b, "--adapter", pair.a, *options) == 2
