"""A whole comparison of the tiny model; its figures equal plain computations."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_distill.compare.config import CompareConfig
from mlx_distill.compare.run import run
from mlx_distill.errors import InputError, MissingError, VerificationError
from mlx_distill.events import Event, Warning
from mlx_distill.models.load import load_student
from mlx_distill.models.tokenize import render, render_prompt
from mlx_distill.records import Example, build_messages
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.training_run import TrainingRun
from tests.support.adapters import make_adapter
from tests.support.comparing import PROMPTS, ROWS, SYSTEM, make_config, write_lines


@pytest.fixture(scope="module")
def adapter(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter that changes what the tiny model says."""
    return make_adapter(tiny_student, tmp_path_factory.mktemp("adapters") / "random")


@pytest.fixture
def config(tiny_student: Path, adapter: Path, tmp_path: Path) -> CompareConfig:
    return make_config(tiny_student, tmp_path, adapter=adapter, max_tokens=12)


def count_weights(file: Path) -> int:
    weights: Any = mx.load(str(file))
    return sum(value.size for value in weights.values())


def plain_figures(model: Any, tokenizer: Any, rows: list[Example]) -> tuple[float, float, int]:
    """Loss and token accuracy of one row at a time, all logits at once, and the number of answer tokens."""
    losses: list[Any] = []
    hits: list[bool] = []
    for row in rows:
        rendered = render(tokenizer, row.messages)
        logits = model(mx.array([rendered.tokens]))[0, :-1].astype(mx.float32)
        probabilities = mx.softmax(logits, axis=-1)
        for position, (token, supervised) in enumerate(zip(rendered.tokens[1:], rendered.mask[1:], strict=True)):
            if supervised:
                losses.append(-mx.log(probabilities[position, token]).item())
                hits.append(mx.argmax(logits[position]).item() == token)
    return sum(losses) / len(losses), sum(hits) / len(hits), len(losses)


@pytest.mark.float32
def test_figures_equal_a_plain_computation_with_mlx_lm(config: CompareConfig) -> None:
    from mlx_lm.utils import load

    result = run(config)
    rows = read_jsonl(config.data / "test.jsonl", Example.from_json)
    table = result.report.tables["held_out"]
    for column, adapter_path in enumerate((None, str(config.adapter))):
        model, tokenizer = load(str(config.model), adapter_path=adapter_path)
        model.set_dtype(mx.float32)
        loss, accuracy, n_tokens = plain_figures(model, tokenizer, rows)
        assert table.rows["loss"][column].value == pytest.approx(loss, rel=1e-5)
        assert table.rows["perplexity"][column].value == pytest.approx(math.exp(loss), rel=1e-5)
        assert table.rows["token accuracy"][column].value == pytest.approx(accuracy, abs=1e-9)
        assert f"{n_tokens:,} answer tokens of {len(ROWS)} test rows in 5 families" in table.note
    assert table.rows["loss"][0] != table.rows["loss"][1]
    by_category = result.report.tables["held_out_by_category"].rows
    assert {name: cells[0].value for name, cells in by_category.items()} == {"python": 2, "concepts": 2, "sql": 2}


@pytest.mark.float32
def test_answers_equal_those_of_mlx_lm_one_at_a_time(config: CompareConfig) -> None:
    from mlx_lm import stream_generate
    from mlx_lm.utils import load

    more = [("long", "python", "Write " + "a longer question about " * 12), ("short", "sql", "Hi"), *PROMPTS]
    prompts = [{"id": name, "category": kind, "prompt": text} for name, kind, text in more]
    config = config.replace(test_prompts=write_lines(config.test_prompts, prompts), max_tokens=24)
    result = run(config)
    for voice, adapter_path in (("a", None), ("b", str(config.adapter))):
        model, tokenizer = load(str(config.model), adapter_path=adapter_path)
        model.set_dtype(mx.float32)
        for answers in result.report.answers:
            answer = getattr(answers, voice)
            prompt = render_prompt(tokenizer, build_messages(answers.prompt, SYSTEM))
            responses = list(stream_generate(model, tokenizer, prompt, max_tokens=24))
            finished = responses[-1].finish_reason == "stop"
            tokens = [response.token for response in responses][: -1 if finished else None]
            assert answer.text == tokenizer.decode(tokens)
            assert (answer.finished, answer.n_tokens) == (finished, len(tokens))
    assert any(answers.a.text != answers.b.text for answers in result.report.answers)


def test_report_json_holds_findings_and_their_origin(config: CompareConfig) -> None:
    result = run(config)
    data = json.loads(result.json_file.read_text(encoding="utf-8"))
    loss = data["tables"]["held_out"]["rows"]["loss"]
    assert loss[0]["value"] == result.report.tables["held_out"].rows["loss"][0].value
    assert loss[2]["low"] <= loss[2]["value"] <= loss[2]["high"]
    assert "low" not in data["tables"]["held_out_by_category"]["rows"]["sql"][4]
    assert data["format"] == 4
    assert data["machine"]["dtype"] == str(load_student(config.model).dtype).removeprefix("mlx.core.")
    assert (data["a"]["name"], data["a"]["adapter"], data["b"]["name"]) == ("base", None, "distilled")
    n_parameters, n_trainable = (
        count_weights(file) for file in (config.model / "model.safetensors", config.adapter / "adapters.safetensors")
    )
    assert data["a"]["path"] == data["b"]["path"] == str(config.model)
    assert (data["b"]["model_type"], data["b"]["n_parameters"]) == ("qwen2", n_parameters)
    adapter = data["b"]["adapter"]
    assert (adapter["folder"], adapter["rank"], adapter["scale"]) == (str(config.adapter), 4, 2.0)
    assert (adapter["n_trainable"], adapter["changes_nothing"]) == (n_trainable, False)
    assert re.fullmatch(r"test loss \S+ → \S+, token accuracy \S+ % → \S+ %", result.summary())
    assert (data["teacher"], data["settings"]["max_tokens"]) == ("", 12)
    assert data["tables"]["completion"]["rows"]["peak memory"][1]["value"] > 0
    assert "judge" not in data["tables"]
    assert sorted(path.name for path in config.out.iterdir()) == ["report.html", "report.json", "report.md"]


def test_config_lists_inputs_and_outputs(config: CompareConfig, tmp_path: Path) -> None:
    recording = write_lines(tmp_path / "judge.jsonl", [{}])
    inputs = config.replace(teacher="recorded:gone.jsonl", judge=f"recorded:{recording}").inputs()
    adapter = [config.adapter / name for name in ("adapters.safetensors", "adapter_config.json")]
    assert inputs == [config.model, *adapter, config.data / "test.jsonl", config.test_prompts, recording]
    assert [file.name for file in config.outputs()] == ["report.json", "report.md", "report.html"]


def test_sampling_is_repeatable_by_its_seed(config: CompareConfig) -> None:
    def texts(seed: int) -> list[str]:
        result = run(config.replace(temperature=1.0, seed=seed))
        return [answers.b.text for answers in result.report.answers]

    assert texts(3) == texts(3)
    assert texts(3) != texts(4)


def test_an_adapter_that_changes_nothing_is_a_warning(config: CompareConfig, tmp_path: Path) -> None:
    events: list[Event] = []
    result = run(config.replace(adapter=make_adapter(config.model, tmp_path / "zero", size=0.0)), events.append)
    assert "changes nothing" in result.report.warnings[0]
    assert Warning(result.report.warnings[0]) in events
    assert "changes nothing" in result.markdown_file.read_text(encoding="utf-8")
    loss = result.report.tables["held_out"].rows["loss"]
    assert loss[0] == loss[1]
    assert all(answers.a.text == answers.b.text for answers in result.report.answers)


def test_training_record_is_in_the_report(config: CompareConfig, tmp_path: Path) -> None:
    adapter = make_adapter(config.model, tmp_path / "trained", moment="best, step 40")
    TrainingRun({"model": f"elsewhere/{config.model.name}"}, {"best_step": 40}).save(adapter)
    result = run(config.replace(adapter=adapter))
    assert result.report.b.adapter and result.report.b.adapter.origin == f"{adapter} (best, step 40)"
    assert "best, step 40" in result.markdown_file.read_text(encoding="utf-8")
    assert result.report.warnings == ()
    TrainingRun({"model": "models/another"}).save(adapter)
    assert "was trained on models/another" in run(config.replace(adapter=adapter)).report.warnings[0]


def test_a_different_system_message_is_a_warning(config: CompareConfig) -> None:
    assert run(config).report.warnings == ()
    assert "'Answer in verse.'" in run(config.replace(system="Answer in verse.")).report.warnings[0]


def test_an_adapter_that_breaks_the_model_is_an_error(config: CompareConfig, tmp_path: Path) -> None:
    broken = make_adapter(config.model, tmp_path / "broken", size=float("nan"))
    with pytest.raises(VerificationError, match="broken: the loss of distilled on the test rows is nan"):
        run(config.replace(adapter=broken))
    assert not config.out.exists()


def test_a_failed_comparison_keeps_the_earlier_report(config: CompareConfig, tmp_path: Path) -> None:
    before = run(config).json_file.read_bytes()
    with pytest.raises(MissingError):
        run(config.replace(adapter=tmp_path / "nowhere"))
    assert (config.out / "report.json").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "kind", "says"),
    [
        ("data/test.jsonl", None, MissingError, "mlx-distill prepare --data"),
        ("data/test.jsonl", "\n", MissingError, "contains no rows"),
        ("data/test.jsonl", '{"messages": [{"role": "user", "content": "Hi"}]}\n', InputError, "no assistant turn"),
        ("prompts.jsonl", None, MissingError, "no such file"),
        ("prompts.jsonl", "", InputError, "contains no prompts"),
        ("prompts.jsonl", '{"id": "a", "prompt": "x"}\n' * 2, InputError, "'a' is used 2 times"),
    ],
)
def test_missing_or_broken_files_are_named(
    config: CompareConfig, tmp_path: Path, name: str, content: str | None, kind: type[Exception], says: str
) -> None:
    file = tmp_path / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(kind) as caught:
        run(config)
    assert says in str(caught.value) and str(file) in str(caught.value)
    assert not config.out.exists()
