"""Run the parts of train.py in separate processes, so that it stays small: `train_parts.py PART SETTINGS`.

prepare  writes the model and the rows that every contestant gets
mlx-lm   is a contestant: mlx_lm.lora with the fast BLAS
score    computes the test losses in the end
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SPLITS = ("train", "valid", "test")


def prepare(settings: dict[str, Any]) -> None:
    """Write the float32 model and the rows; print machine, versions and counts."""
    from mlx_distill import cpu, device

    device.configure_process()
    hardware = device.prepare()
    import shutil

    import mlx.core as mx

    from mlx_distill.convert import ConvertConfig
    from mlx_distill.convert import run as convert
    from mlx_distill.models.load import load_student
    from mlx_distill.prepare import run as prepare
    from mlx_distill.prepare.config import PrepareConfig
    from mlx_distill.storage.package_data import package_data_path

    scratch, model, rows = Path(settings["scratch"]), Path(settings["model"]), Path(settings["data"])
    source, data = settings["source"]["model"], settings["source"]["data"]
    if not source:
        source = str(convert.run(ConvertConfig(source="sample", out=scratch / "converted")).path)
    if not data:
        data = str(scratch / "sample")
        Path(data).mkdir()
        shutil.copy(package_data_path("sample") / "teacher_data.jsonl", data)
        prepare.run(PrepareConfig(data=Path(data), model=Path(source)))

    shutil.copytree(source, model, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    weights: Any = {}
    for file in Path(source).glob("*.safetensors"):
        weights |= mx.load(str(file))
    weights = {name: value.astype(mx.float32) for name, value in weights.items()}
    mx.save_safetensors(str(model / "model.safetensors"), weights, metadata={"format": "mlx"})
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}))

    rows.mkdir()
    for split, count in (("train", settings["rows"]), ("valid", settings["batch_size"]), ("test", None)):
        lines = (Path(data) / f"{split}.jsonl").read_text().splitlines()[:count]
        if len(lines) < (count or 1):
            sys.exit(f"{data}/{split}.jsonl holds {len(lines)} rows, {count or 1} are needed")
        (rows / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    student = load_student(model, dtype=mx.float32)
    read = {name: _rows(rows / f"{name}.jsonl", student) for name in SPLITS}
    tokens = {name: [[row.tokens, row.mask] for row in split] for name, split in read.items()}
    (rows / "tokens.json").write_text(json.dumps(tokens))
    supervised = {name: sum(row.n_supervised for row in split) for name, split in read.items()}
    facts = {
        "machine": hardware.name,
        "device": hardware.kind,
        "cores": cpu.cores(),
        "blas": hardware.blas.name if hardware.blas else "",
        "versions": device.versions(),
        "supervised_tokens": supervised["train"],
        "test": {"rows": len(read["test"]), "tokens": supervised["test"]},
    }
    print(json.dumps(facts))


def _rows(path: Path, student: Any) -> list[Any]:
    """Return the tokenised rows of a split."""
    from mlx_distill.models.tokenize import render
    from mlx_distill.records import Example
    from mlx_distill.storage.jsonl import read_jsonl

    return [render(student.tokenizer, example.messages) for example in read_jsonl(path, Example.from_json)]


def mlx_lm(settings: dict[str, Any]) -> None:
    """Run `mlx_lm.lora` with the fast BLAS, which it does not load by itself."""
    from mlx_distill import cpu

    cpu.load_fast_blas()
    from mlx_lm import lora

    file = Path(settings["adapter_path"]).with_suffix(".yaml")
    file.write_text(json.dumps(settings))  # JSON is YAML
    sys.argv = ["mlx_lm.lora", "--config", str(file)]
    lora.main()


def score(settings: dict[str, Any]) -> None:
    """Print the test loss of the base and of each adapter folder."""
    from mlx_distill import device

    device.configure_process()
    import mlx.core as mx

    from mlx_distill.models import score as scoring
    from mlx_distill.models.adapter import load_adapter
    from mlx_distill.models.load import load_student

    losses = {}
    for name, folder in {"base": "", **settings["folders"]}.items():
        student = load_student(Path(settings["model"]), dtype=mx.float32)
        rows = _rows(Path(settings["data"]) / "test.jsonl", student)
        if folder:
            load_adapter(student, Path(folder))
        losses[name] = scoring.score(student, rows).loss
    print(json.dumps(losses))


PARTS = {"prepare": prepare, "mlx-lm": mlx_lm, "score": score}


if __name__ == "__main__":
    PARTS[sys.argv[1]](json.loads(sys.argv[2]))
