"""Writing of a converted model folder, and its trial."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm import utils as mlx_lm_utils

from mlx_distill import device
from mlx_distill.convert.config import ConvertConfig
from mlx_distill.convert.sources import Source
from mlx_distill.errors import DistillError, InputError, VerificationError
from mlx_distill.events import Note, Report
from mlx_distill.models import hub
from mlx_distill.models.generate import stream
from mlx_distill.models.gguf.read import convert_gguf
from mlx_distill.models.load import load_student, load_weights, read_config
from mlx_distill.models.provenance import Provenance, output_states
from mlx_distill.models.safetensors_io import read_headers
from mlx_distill.models.tokenize import check_chat_template, render_prompt
from mlx_distill.records import build_messages
from mlx_distill.storage.file_states import states_of
from mlx_distill.storage.files import MODEL_CONFIG

TRIAL_PROMPT = "Say hello in one short sentence."
TRIAL_TOKENS = 16
_OTHER_STUDENT = "Choose another student, such as Qwen/Qwen2.5-0.5B-Instruct."


def build(source: Source, config: ConvertConfig, out: Path, report: Report) -> dict[str, Any]:
    """Fill the existing folder `out` with the model and its record, and try it. Returns the fields of the result."""
    folder, revision = source.path, ""
    if folder is None:
        folder = hub.fetch(config.source, config.revision, report)
        revision = folder.name
    try:
        linked = _write(source, folder, out, config, report)
        n_parameters, text = _try_out(out)
    except DistillError as error:
        message = error.message.replace(str(out), config.source)  # the temporary folder means nothing to the user
        loading = not error.next_step or "mlx-distill convert" in error.next_step
        raise type(error)(message, _OTHER_STUDENT if loading else error.next_step, error.problems) from error
    figures = {
        "source": config.source,
        "kind": source.kind,
        "revision": revision,
        "n_parameters": n_parameters,
        "dtype": read_headers(out).dtype,
        "linked": linked,
        "sample_text": text,
    }
    inputs = {} if linked or source.kind == "hub" else states_of([folder.resolve()])
    Provenance(
        config.source,
        source.kind,
        revision,
        config.result_settings,
        figures,
        device.versions(),
        inputs,
        output_states(out),
    ).save(out)
    return figures


def _write(source: Source, folder: Path, out: Path, config: ConvertConfig, report: Report) -> bool:
    """Write the model. Returns True if links to the source's files were enough."""
    if source.kind in ("gguf", "sample"):
        plain = out / "unquantised" if config.q_bits else out
        plain.mkdir(exist_ok=True)
        convert_gguf(folder, plain, report)
        if config.q_bits:
            _convert_folder(plain, out, config, report)
            shutil.rmtree(plain)
        return False
    weights = read_headers(folder)
    quantized = "quantization" in read_config(folder)
    if weights.is_mlx and not config.q_bits:
        report(Note(f"{config.source} is in MLX format already: {config.out} links to {folder}"))
        for pattern in hub.PATTERNS:
            for file in folder.glob(pattern):
                (out / file.name).symlink_to(file.absolute())
        return True
    if quantized and config.q_bits:
        raise InputError(f"{config.source} is quantised already.", "Leave --q-bits out.")
    _convert_folder(folder, out, config, report)
    return False


def _convert_folder(folder: Path, out: Path, config: ConvertConfig, report: Report) -> None:
    """Convert a Hugging Face folder through mlx-lm's class of the architecture, and quantise it if asked."""
    model, settings = load_weights(folder)
    printed = io.StringIO()  # mlx-lm prints to standard output, which belongs to the command's result
    with contextlib.redirect_stdout(printed):
        if config.q_bits:
            model, settings = mlx_lm_utils.quantize_model(model, settings, config.q_group_size, config.q_bits)
    for line in printed.getvalue().splitlines():
        report(Note(line.removeprefix("[INFO] ")))
    mlx_lm_utils.save_model(out, model, donate_model=True)
    mlx_lm_utils.save_config(settings, out / MODEL_CONFIG)
    for name in hub.TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)


def _try_out(folder: Path) -> tuple[int, str]:
    """Load the folder and write a few tokens. Returns the number of parameters and the text."""
    student = load_student(folder)
    check_chat_template(student.tokenizer)
    prompt = render_prompt(student.tokenizer, build_messages(TRIAL_PROMPT))
    if not bool(mx.isfinite(student.model(mx.array([prompt]))).all()):
        raise VerificationError(f"{folder}: the converted model's logits are not finite. Its weights are damaged.")
    text = "".join(chunk.text for chunk in stream(student, prompt, max_tokens=TRIAL_TOKENS))
    return student.n_parameters, text.strip()
