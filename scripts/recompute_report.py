"""Compute the figures of a report.json again from the raw files, plainly, and say where the two differ.

    python scripts/recompute_report.py reports/demo      in the project's folder; exit code 1 where a figure differs

Nothing of mlx_distill is used: JSON, NumPy, and mlx-lm for the forward pass, one row at a time. Rows must end in their
only answer.
"""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm import load

RESAMPLES = 10_000
Sums = np.ndarray
"""Tokens, then loss and correct tokens of the first side, then of the second."""


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]


def sums_of_rows(rows: list[dict[str, Any]], sides: list[dict[str, Any]], dtype: str) -> list[Sums]:
    """Each row's tokens and, for either side, its summed loss and correct tokens."""
    sums = [np.zeros(5) for _ in rows]
    for column, side in enumerate(sides):
        adapter = side["adapter"] and side["adapter"]["folder"]
        model, tokenizer = load(side["model"]["path"], adapter_path=adapter)
        model.set_dtype(getattr(mx, dtype))
        for row, total in zip(rows, sums, strict=True):
            asked, answer = answer_tokens(tokenizer, row["messages"])
            logits = model(mx.array([asked + answer]))[0, len(asked) - 1 : -1].astype(mx.float32)
            log_p = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True), dtype=np.float64)
            total[0] = len(answer)
            total[1 + 2 * column] = -log_p[np.arange(len(answer)), answer].sum()
            total[2 + 2 * column] = (log_p.argmax(axis=-1) == answer).sum()
    return sums


def answer_tokens(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """The tokens that ask, and those of the answer with the token that ends it."""
    if [message["role"] for message in messages].count("assistant") != 1 or messages[-1]["role"] != "assistant":
        sys.exit("A row does not end in its only answer: this script does not know how to read it.")
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    answer = whole[len(asked) :]
    end = next(place for place, token in enumerate(answer) if token in tokenizer.eos_token_ids)
    return list(asked), list(answer[: end + 1])


def figures(sums: Sums) -> np.ndarray:
    """Loss, perplexity and token accuracy of the first side, then of the second."""
    found = []
    for column in (0, 1):
        loss = sums[..., 1 + 2 * column] / sums[..., 0]
        found += [loss, np.exp(loss), sums[..., 2 + 2 * column] / sums[..., 0]]
    return np.stack(found, axis=-1)


def interval(families: Sums) -> tuple[np.ndarray, np.ndarray]:
    """95 % bounds of the differences, by drawing families with replacement; the tails wider where they are few."""
    n = len(families)
    drawn = np.random.default_rng(20081016).integers(n, size=(RESAMPLES, n))
    values = figures(families[drawn].sum(axis=1))
    tail = 0.5 * math.erfc(math.sqrt(n / (n - 1)) * student_t(n - 1) / math.sqrt(2))
    low, high = np.quantile(values[:, 3:] - values[:, :3], [tail, 1 - tail], axis=0)
    return low, high


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by summing up its density."""
    t = np.linspace(0, 60, 600_001)
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    density = scale * (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
    share = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * (t[1] - t[0]))])
    return float(np.interp(0.475, share, t))


def compare_measured(name: str, said: dict[str, Any], rows: list[dict[str, Any]], sums: list[Sums]) -> Iterator[str]:
    families: dict[str, Sums] = {}
    for row, own in zip(rows, sums, strict=True):
        families[row["family"]] = families.get(row["family"], np.zeros(5)) + own
    total = np.sum(sums, axis=0)
    yield from differs(f"{name}: rows", said["n_rows"], len(rows))
    yield from differs(f"{name}: tokens", said["n_tokens"], total[0])
    yield from differs(f"{name}: families", said["n_families"], len(families))
    values = figures(total)
    metrics = ("loss", "perplexity", "token_accuracy")
    for place, metric in enumerate(metrics):
        yield from differs(f"{name}: {metric} of the first", said["base"][metric], values[place], 1e-5)
        yield from differs(f"{name}: {metric} of the second", said["distilled"][metric], values[3 + place], 1e-5)
        change = values[3 + place] - values[place]
        yield from differs(f"{name}: change of {metric}", said["difference"][metric]["value"], change, 1e-5)
    if said["difference"]["loss"]["low"] is not None:
        low, high = interval(np.stack(list(families.values())))
        for place, metric in enumerate(metrics):
            room = 0.05 * (high[place] - low[place]) + 1e-6  # two sets of draws, not one
            yield from differs(f"{name}: lower bound of {metric}", said["difference"][metric]["low"], low[place], room)
            yield from differs(
                f"{name}: upper bound of {metric}", said["difference"][metric]["high"], high[place], room
            )


def compare_parameters(side: dict[str, Any]) -> Iterator[str]:
    if side["adapter"]:
        weights = mx.load(str(Path(side["adapter"]["folder"], "adapters.safetensors")))
        n = sum(value.size for value in weights.values())
        yield from differs(f"{side['name']}: trainable parameters", side["adapter"]["n_trainable"], n)
    if not side["model"]["quantized"]:
        files = Path(side["model"]["path"]).glob("model*.safetensors")
        n = sum(value.size for file in files for value in mx.load(str(file)).values())
        yield from differs(f"{side['name']}: parameters", side["model"]["n_parameters"], n)


def compare_collected(said: dict[str, Any] | None, data: Path) -> Iterator[str]:
    if said is None:
        return
    asked = {one["key"] for one in json.loads((data / "collect.json").read_text(encoding="utf-8"))["answers"]}
    answers = {row["key"]: row for row in lines_of(data / "teacher_data.jsonl") if row["key"] in asked}
    prices = [row["cost_usd"] for row in answers.values() if row.get("cost_usd") is not None]
    yield from differs("prompts asked", said["n_prompts"], len(asked))
    yield from differs("prompts answered", said["n_answered"], len(answers))
    yield from differs("dollars", said["cost_usd"], sum(prices) if prices else None, 1e-6)


def compare_python(report: dict[str, Any]) -> Iterator[str]:
    for voice, said in report["code"]["stands"].get("python", {}).items():
        texts = [one[voice]["text"] for one in report["answers"] if one[voice]]
        blocks = [block for text in texts for block in re.findall(r"^```python\n(.*?)(^```|\Z)", text, re.M | re.S)]
        yield from differs(f"{voice}: Python blocks", said["of"], len(blocks))
        yield from differs(f"{voice}: Python blocks that stand", said["n"], sum(map(stands, blocks)))


def stands(block: tuple[str, str]) -> bool:
    try:
        ast.parse(block[0])
    except (SyntaxError, ValueError):
        return False
    return bool(block[1])


def differs(name: str, said: float | None, found: float | None, room: float = 0.0) -> Iterator[str]:
    global n_compared
    n_compared += 1
    same = said == found if said is None or found is None else abs(said - found) <= room * max(1.0, abs(found))
    if not same:
        yield f"{name}: the report says {said}, the files say {found}"


n_compared = 0


def main(folder: Path) -> int:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    data = Path(report["settings"]["data"])
    sides, test = list(report["sides"].values()), report["test"]
    rows = lines_of(data / "test.jsonl")
    sums = sums_of_rows(rows, sides, report["machine"]["dtype"])
    wrong = list(compare_measured("all rows", test, rows, sums))
    for category, said in test["by_category"].items():
        of = [number for number, row in enumerate(rows) if row["category"] == category]
        wrong += compare_measured(category, said, [rows[n] for n in of], [sums[n] for n in of])
    for side in sides:
        wrong += compare_parameters(side)
    wrong += compare_collected(report["history"]["collected"], data)
    wrong += compare_python(report)
    for line in wrong:
        print(line)
    print(f"{n_compared} figures computed again, {len(wrong)} differ.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
