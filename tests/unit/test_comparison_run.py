"""A whole comparison on the tiny model, its figures against plain computations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_distill.compare.config import CompareConfig
from mlx_distill.compare.run import run
from mlx_distill.errors import InputError, MissingError, VerificationError
from mlx_distill.events import Event, Warning
from mlx_distill.models.adapter import attach
from mlx_distill.models.load import load_student
from mlx_distill.models.tokenize import render, render_prompt
from mlx_distill.records import Example, build_messages
from mlx_distill.storage.jsonl import read_jsonl
from tests.support.adapters import make_adapter
from tests.support.comparing import PROMPTS, ROWS, SYSTEM, example, make_config, write_lines
from tests.support.tiny import make_tiny_qwen2


@pytest.fixture(scope="module")
def adapter(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter that changes what the tiny model says."""
    return make_adapter(tiny_student, tmp_path_factory.mktemp("adapters") / "random")


@pytest.fixture
def config(tiny_student: Path, adapter: Path, tmp_path: Path) -> CompareConfig:
    return make_config(tiny_student, tmp_path, adapter=adapter, max_tokens=12)


def plain_figures(model: Any, tokenizer: Any, rows: list[Example]) -> tuple[float, float, int]:
    """Loss and token accuracy of one row at a time, all logits at once, and the number of answer tokens."""
    losses, hits = [], []
    for row in rows:
        rendered = render(tokenizer, row.messages)
        logits = model(mx.array([rendered.tokens]))[0, :-1].astype(mx.float32)
        probabilities = mx.softmax(logits, axis=-1)
        for position, (token, supervised) in enumerate(zip(rendered.tokens[1:], rendered.mask[1:], strict=True)):
            if supervised:
                losses.append(-math.log(probabilities[position, token].item()))
                hits.append(mx.argmax(logits[position]).item() == token)
    return sum(losses) / len(losses), sum(hits) / len(hits), len(losses)


def test_the_figures_equal_a_plain_computation_with_mlx_lm_alone(config: CompareConfig) -> None:
    from mlx_lm.utils import load

    result = run(config)
    rows = read_jsonl(config.data / "test.jsonl", Example.from_json)
    for figures, adapter_path in ((result.test.base, None), (result.test.distilled, str(config.adapter))):
        model, tokenizer = load(str(config.model), adapter_path=adapter_path)
        model.set_dtype(mx.float32)
        loss, accuracy, n_tokens = plain_figures(model, tokenizer, rows)
        assert figures.loss == pytest.approx(loss, rel=1e-5)
        assert figures.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
        assert figures.token_accuracy == pytest.approx(accuracy, abs=1e-9)
        assert result.test.n_tokens == n_tokens
    assert result.test.base != result.test.distilled
    assert (result.test.n_rows, result.test.n_families) == (len(ROWS), 5)
    assert {name: group.n_rows for name, group in result.test.by_category.items()} == {
        "python": 2,
        "concepts": 2,
        "sql": 2,
    }


def test_the_base_under_an_adapter_is_the_base_bit_for_bit(config: CompareConfig, adapter: Path) -> None:
    alone, adapted = load_student(config.model), load_student(config.model)
    switch = attach(adapted, adapter)
    tokens = mx.array([render_prompt(alone.tokenizer, build_messages("What is a queue?", SYSTEM))])
    assert not mx.array_equal(adapted.model(tokens), alone.model(tokens))
    switch.enabled = False
    assert mx.array_equal(adapted.model(tokens), alone.model(tokens))


def test_answers_written_together_equal_those_of_mlx_lm_one_at_a_time(config: CompareConfig) -> None:
    from mlx_lm import stream_generate
    from mlx_lm.utils import load

    more = [("long", "python", "Write " + "a longer question about " * 12), ("short", "sql", "Hi"), *PROMPTS]
    prompts = [{"id": name, "category": kind, "prompt": text} for name, kind, text in more]
    config = config.replace(test_prompts=write_lines(config.test_prompts, prompts), max_tokens=24)
    result = run(config)
    for voice, adapter_path in (("base", None), ("distilled", str(config.adapter))):
        model, tokenizer = load(str(config.model), adapter_path=adapter_path)
        model.set_dtype(mx.float32)
        for answers in result.answers:
            answer = getattr(answers, voice)
            prompt = render_prompt(tokenizer, build_messages(answers.prompt, SYSTEM))
            responses = list(stream_generate(model, tokenizer, prompt, max_tokens=24))
            finished = responses[-1].finish_reason == "stop"
            tokens = [response.token for response in responses][: -1 if finished else None]
            assert answer.text == tokenizer.decode(tokens)
            assert (answer.finished, answer.n_tokens) == (finished, len(tokens))
    assert any(answers.base.text != answers.distilled.text for answers in result.answers)


def test_report_json_holds_the_findings_and_what_they_are_findings_of(config: CompareConfig) -> None:
    result = run(config)
    data = json.loads(result.report.read_text(encoding="utf-8"))
    assert data["test"]["base"]["loss"] == result.test.base.loss
    assert data["test"]["distilled"]["token_accuracy"] == result.test.distilled.token_accuracy
    assert (data["test"]["n_rows"], data["test"]["n_tokens"]) == (result.test.n_rows, result.test.n_tokens)
    assert data["test"]["by_category"]["sql"]["n_families"] == 2
    assert data["test"]["by_category"]["sql"]["difference"]["loss"]["low"] is None
    assert data["test"]["difference"]["loss"]["low"] <= data["test"]["difference"]["loss"]["value"]
    assert data["schema_version"] == 2
    assert data["when"].endswith("+00:00")
    assert data["machine"]["dtype"] == str(load_student(config.model).dtype).removeprefix("mlx.core.")
    assert data["versions"].keys() >= {"mlx-distill", "mlx", "mlx-lm", "python"}
    assert [side["name"] for side in data["sides"].values()] == ["base", "distilled"]
    assert data["sides"]["base"]["adapter"] is None
    assert (
        data["sides"]["distilled"]["model"]
        == data["sides"]["base"]["model"]
        == {
            "path": str(config.model),
            "model_type": "qwen2",
            "n_parameters": sum(value.size for value in mx.load(str(config.model / "model.safetensors")).values()),
            "quantized": False,
            "source": "",
            "revision": "",
        }
    )
    n_trainable = sum(value.size for value in mx.load(str(config.adapter / "adapters.safetensors")).values())
    assert data["sides"]["distilled"]["adapter"] == {
        "folder": str(config.adapter),
        "file": "adapters.safetensors",
        "choice": "",
        "trained_on": "",
        "data": "",
        "rank": 4,
        "scale": 2.0,
        "n_trainable": n_trainable,
        "changes_nothing": False,
    }
    assert data["teacher"] is None
    assert data["settings"]["max_tokens"] == 12
    assert data["answers"][0].keys() == {"id", "category", "prompt", "base", "distilled", "teacher", "origin", "family"}
    assert data["answers"][0]["base"].keys() == {"text", "finished", "n_tokens", "tokens_per_second", "repetition"}
    assert data["answer_figures"]["writing"]["distilled"]["peak_bytes"] > 0
    assert data["judged"] is None
    assert set(data["seconds"]) >= {"load", "score base", "score distilled", "answers of base", "answers of distilled"}
    assert sorted(path.name for path in config.out.iterdir()) == ["report.html", "report.json", "report.md"]


def test_sampling_is_repeatable_by_its_seed(config: CompareConfig) -> None:
    def texts(seed: int) -> list[str]:
        return [answers.distilled.text for answers in run(config.replace(temperature=1.0, seed=seed)).answers]

    assert texts(3) == texts(3)
    assert texts(3) != texts(4)


def test_an_adapter_that_changes_nothing_is_said_to(config: CompareConfig, tmp_path: Path) -> None:
    events: list[Event] = []
    result = run(config.replace(adapter=make_adapter(config.model, tmp_path / "zero", size=0.0)), events.append)
    assert "changes nothing" in result.cautions[0]
    assert Warning(result.cautions[0]) in events
    assert "changes nothing" in result.markdown.read_text(encoding="utf-8")
    assert result.test.base == result.test.distilled
    assert all(answers.base.text == answers.distilled.text for answers in result.answers)


def test_what_training_wrote_down_is_in_the_report(config: CompareConfig, tmp_path: Path) -> None:
    adapter = make_adapter(config.model, tmp_path / "trained", moment="best, step 40")
    record = {"settings": {"model": f"elsewhere/{config.model.name}"}, "result": {"best_step": 40}}
    (adapter / "run.json").write_text(json.dumps(record))
    result = run(config.replace(adapter=adapter))
    assert result.adapters == (f"{adapter} (best, step 40)",)
    assert json.loads(result.report.read_text(encoding="utf-8"))["sides"]["distilled"]["adapter"]["choice"] == (
        "best, step 40"
    )
    assert "best, step 40" in result.markdown.read_text(encoding="utf-8")
    assert result.cautions == ()
    record["settings"]["model"] = "models/another"
    (adapter / "run.json").write_text(json.dumps(record))
    assert "was trained on models/another" in run(config.replace(adapter=adapter)).cautions[0]


def test_another_system_message_than_that_of_the_rows_is_pointed_out(config: CompareConfig) -> None:
    assert run(config).cautions == ()
    assert "'Answer in verse.'" in run(config.replace(system="Answer in verse.")).cautions[0]


def test_fewer_than_five_families_get_a_difference_and_no_interval(config: CompareConfig) -> None:
    write_lines(config.data / "test.jsonl", [example(*row) for row in ROWS[:4]])
    result = run(config)
    assert result.test.n_families == 3
    assert result.test.difference.loss.low is None
    assert "No interval: 3 families" in result.markdown.read_text(encoding="utf-8")


def refuses(config: CompareConfig, file: Path, content: str | None, kind: type[Exception], says: str) -> None:
    """With this content of the file, or without the file, it says which file and what is wrong, and writes nothing."""
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(kind) as caught:
        run(config)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (None, MissingError, "mlx-distill prepare --data"),
        ("", MissingError, "holds no rows"),
        ("\n\n", MissingError, "holds no rows"),
        ("{broken\n", InputError, "test.jsonl:1: not valid JSON"),
        ('{"messages": []}\n', InputError, "test.jsonl:1"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}\n', InputError, "no assistant turn"),
    ],
)
def test_held_out_rows_that_are_missing_or_broken_are_named(
    config: CompareConfig, content: str | None, kind: type[Exception], says: str
) -> None:
    refuses(config, config.data / "test.jsonl", content, kind, says)


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (None, MissingError, "there is no such file"),
        ("", InputError, "holds no prompts"),
        ("Is a tree balanced?\n", InputError, "prompts.jsonl:1: not valid JSON"),
        ('{"prompt": ""}\n', InputError, '"prompt" is empty'),
        ('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}\n', InputError, "'a' is used 2 times"),
    ],
)
def test_test_prompts_that_are_missing_or_broken_are_named(
    config: CompareConfig, content: str | None, kind: type[Exception], says: str
) -> None:
    refuses(config, config.test_prompts, content, kind, says)


def test_an_adapter_of_another_model_is_refused(config: CompareConfig, tmp_path: Path) -> None:
    wider = make_tiny_qwen2(tmp_path / "wider", hidden=128)
    with pytest.raises(InputError, match="does not fit"):
        run(config.replace(adapter=make_adapter(wider, tmp_path / "other")))
    assert not config.out.exists()


def test_an_adapter_that_breaks_the_model_is_no_result(config: CompareConfig, tmp_path: Path) -> None:
    broken = make_adapter(config.model, tmp_path / "broken", size=float("nan"))
    with pytest.raises(VerificationError, match="broken: the loss of distilled on the test rows is nan"):
        run(config.replace(adapter=broken))
    assert not config.out.exists()


def test_a_report_from_before_survives_a_comparison_that_fails(config: CompareConfig, tmp_path: Path) -> None:
    before = run(config).report.read_bytes()
    with pytest.raises(MissingError):
        run(config.replace(adapter=tmp_path / "nowhere"))
    assert (config.out / "report.json").read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value"), [("max_tokens", 0), ("temperature", -0.1), ("temperature", float("nan")), ("seed", -1)]
)
def test_settings_out_of_range_are_refused(config: CompareConfig, field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        config.replace(**{field: value})
