"""`convert`: a student from the Hub, a folder or a GGUF file becomes an MLX model folder that the other stages read.

The folder keeps its source's type of weights. A source that is in MLX format already is not copied: the folder then
holds links to the source's files, so that every stage finds its model in one place and no weights lie there twice.
Either way `mlx_distill.json` in the folder says what it was made from.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mlx_distill import device
from mlx_distill.config import Config, doc
from mlx_distill.convert import hub
from mlx_distill.convert.sources import Source, locate
from mlx_distill.errors import DistillError, InputError, MissingError, VerificationError
from mlx_distill.events import Note, Report, ignore
from mlx_distill.models.provenance import Provenance, output_states
from mlx_distill.models.quantization import check_quantization
from mlx_distill.models.safetensors_io import read_headers
from mlx_distill.records import build_messages
from mlx_distill.storage.atomic import new_folder
from mlx_distill.storage.file_states import states_of

if TYPE_CHECKING:
    from mlx_distill.models.load import Student

TRIAL_PROMPT = "Say hello in one short sentence."
TRIAL_TOKENS = 16


class ConvertConfig(Config, frozen=True):
    """What to convert, and to where."""

    source: Annotated[str, doc("a Hub id (owner/name), a model folder, a GGUF file, or `sample`")]
    out: Annotated[Path, doc("the model folder to write")]
    revision: Annotated[str, doc("branch, tag or commit of a Hub repository (its main branch unless given)")] = ""
    q_bits: Annotated[int, doc("quantise to 4 or 8 bits; not quantised unless given")] | None = None
    q_group_size: Annotated[int, doc("weights that share a scale, where quantised: 32, 64 or 128")] = 64
    force: Annotated[bool, doc("replace what is there, and ask the Hub for the revision anew")] = False

    def check(self) -> None:
        if not self.source.strip():
            raise ValueError("source is empty")
        check_quantization(self.q_bits, self.q_group_size)

    @property
    def deciding(self) -> dict[str, Any]:
        """The settings that decide what comes out of a source."""
        return {
            "revision": self.revision,
            "q_bits": self.q_bits,
            "q_group_size": self.q_group_size if self.q_bits else None,
        }


@dataclass(frozen=True)
class ConvertResult:
    """A model folder, tried out."""

    path: Path
    """The folder that the other stages load."""
    source: str
    kind: str
    """hub, folder, gguf or sample."""
    revision: str
    """The pinned commit of a Hub repository; empty for files."""
    n_parameters: int
    dtype: str
    """The floating type of the weights in the files."""
    linked: bool
    """The source is MLX already: the folder holds links to its files."""
    sample_text: str
    """The first tokens of an answer, greedily: what the trial saw."""
    already_there: bool
    seconds: float


def run(config: ConvertConfig, report: Report = ignore) -> ConvertResult:
    """Convert a student, load the result and let it write a few tokens.

    What is there already from the same source and settings is left alone. Raises InputError or MissingError for a
    source that is not there or not supported, MachineError where the Hub cannot be reached, VerificationError where
    the result does not work. Nothing half-made is left at `config.out`.
    """
    started = time.monotonic()
    made = Provenance.load(config.out)
    if made and not config.force:
        reason = _why_again(made, config)
        if not reason:
            figures = {**made.result, "path": config.out, "already_there": True}
            return ConvertResult(**figures, seconds=round(time.monotonic() - started, 2))
        report(Note(f"{config.out}: made again, since {reason}"))
    source = locate(config.source)
    _check(source, config)
    folder, revision = source.path, ""
    if source.kind == "hub":
        snapshot = hub.fetch(config.source, config.revision, report)
        folder, revision = snapshot.folder, snapshot.revision
    assert folder is not None  # a source without a path is a Hub repository
    with new_folder(config.out, replace=config.force or made is not None) as scratch:
        linked = _write(source, folder, scratch, config, report)
        n_parameters, text = _try_out(scratch, config)
        figures = {
            "source": config.source,
            "kind": source.kind,
            "revision": revision,
            "n_parameters": n_parameters,
            "dtype": read_headers(scratch).dtype,
            "linked": linked,
            "sample_text": text,
        }
        inputs = {} if linked or source.kind == "hub" else states_of([folder.resolve()])
        Provenance(
            config.source,
            source.kind,
            revision,
            config.deciding,
            figures,
            device.versions(),
            inputs,
            output_states(scratch),
        ).save(scratch)
    seconds = round(time.monotonic() - started, 2)
    return ConvertResult(path=config.out, already_there=False, seconds=seconds, **figures)


def _why_again(made: Provenance, config: ConvertConfig) -> str:
    """ "" where the folder is what `config` asks for, else the reason to make it again.

    Raises InputError where that would destroy something: a student of another source, or files someone has edited.
    """
    out = config.out
    if made.source != config.source:
        raise InputError(
            f"{out} holds another student, made from {made.source}.",
            "Choose another path, or pass --force to replace it.",
        )
    if missing := made.missing_outputs(out):
        return f"{', '.join(missing)} is gone"
    edited = made.edited_outputs(out)
    if edited and not made.result.get("linked"):
        raise InputError(f"{out}: {', '.join(edited)} was changed after the conversion.", "Pass --force to remake it.")
    settings = [name for name, value in config.deciding.items() if value != made.settings.get(name)]
    if config.revision == made.revision and "revision" in settings:
        settings.remove("revision")  # it now names the commit that it was pinned to before
    changed = [*settings, *edited, *made.changed_inputs()]
    return f"{', '.join(changed)} changed" if changed else ""


def _check(source: Source, config: ConvertConfig) -> None:
    """Refuse what would be ignored or would destroy the source."""
    if config.revision and source.kind != "hub":
        raise InputError(f"revision: {config.source} is not a Hub repository.", "Leave --revision out.")
    if source.path and source.path.resolve().is_relative_to(config.out.resolve()):
        raise InputError(f"{config.out} is or contains the source {config.source}.", "Choose another --out.")


def _write(source: Source, folder: Path, scratch: Path, config: ConvertConfig, report: Report) -> bool:
    """Fill `scratch` with the model; True where it was enough to link to the source's files."""
    if source.kind in ("gguf", "sample"):
        from mlx_distill.models import gguf

        if not config.q_bits:
            gguf.write_model(folder, scratch, report)
            return False
        plain = scratch / "unquantised"
        plain.mkdir()
        gguf.write_model(folder, plain, report)
        _convert_folder(plain, scratch, config, report)
        shutil.rmtree(plain)
        return False
    from mlx_distill.models.load import read_config

    weights = read_headers(folder)
    if not (folder / "config.json").is_file():
        raise MissingError(f"{config.source}: no config.json in {folder}.", "Name a whole model folder.")
    read_config(folder)
    if weights.is_mlx and not config.q_bits:
        report(Note(f"{config.source} is in MLX format already: {config.out} links to {folder}"))
        for pattern in hub.PATTERNS:
            for file in folder.glob(pattern):
                (scratch / file.name).symlink_to(file.absolute())
        return True
    _convert_folder(folder, scratch, config, report)
    return False


def _convert_folder(folder: Path, scratch: Path, config: ConvertConfig, report: Report) -> None:
    """A Hugging Face folder in MLX format, through mlx-lm's class of the architecture; quantised where asked for."""

    device.prepare()
    from mlx_lm import utils as mlx_lm_utils

    from mlx_distill.models.load import load_weights, read_config

    if "quantization" in read_config(folder) and config.q_bits:
        raise InputError(f"{config.source} is quantised already.", "Leave --q-bits out.")
    printed = io.StringIO()  # mlx-lm prints to standard output, which belongs to the command's result
    try:
        model, settings = load_weights(folder)
        with contextlib.redirect_stdout(printed):
            if config.q_bits:
                model, settings = mlx_lm_utils.quantize_model(model, settings, config.q_group_size, config.q_bits)
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise InputError(
            f"{config.source}: mlx-lm cannot read this model: {first}", "Choose a model that mlx-lm supports."
        ) from error
    for line in printed.getvalue().splitlines():
        report(Note(line.removeprefix("[INFO] ")))
    mlx_lm_utils.save_model(scratch, model, donate_model=True)
    mlx_lm_utils.save_config(settings, scratch / "config.json")
    for name in hub.TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, scratch / name)


def _try_out(folder: Path, config: ConvertConfig) -> tuple[int, str]:
    """Load the folder and write a few tokens: the number of parameters and the text.

    Raises VerificationError where the logits are not finite, and the loader's errors in the user's words.
    """

    device.prepare()
    import mlx.core as mx

    from mlx_distill.models.generate import stream
    from mlx_distill.models.load import load_student
    from mlx_distill.models.tokenize import check_chat_template, render_prompt

    try:
        student: Student = load_student(folder)
        check_chat_template(student.tokenizer)
        prompt = render_prompt(student.tokenizer, build_messages(TRIAL_PROMPT))
    except DistillError as error:
        message = str(error.message).replace(str(folder), config.source)
        raise type(error)(message, "Choose another student, such as Qwen/Qwen2.5-0.5B-Instruct.") from error
    if not bool(mx.isfinite(student.model(mx.array([prompt]))).all()):
        raise VerificationError(
            f"{config.source}: the converted model's logits are not finite.", "Its weights are damaged: get them again."
        )
    text = "".join(piece.text for piece in stream(student, prompt, max_tokens=TRIAL_TOKENS))
    return student.n_parameters, text.strip()
