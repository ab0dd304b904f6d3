"""`export ollama`: a folder with a GGUF file and the Modelfile that makes it a model of Ollama's."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from mlx_distill import device
from mlx_distill.config import Config, doc
from mlx_distill.errors import MachineError
from mlx_distill.events import Note, Report, Warning, ignore
from mlx_distill.records import Message, Messages
from mlx_distill.storage.atomic import new_folder, write_text

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

CHATML = """\
{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
"""ChatML as a Go template; Ollama puts the SYSTEM text before the messages where a request brings none.
https://docs.ollama.com/modelfile"""

MODELFILE = "Modelfile"
_NAME = re.compile(r"(?:[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]{0,79}(?::[a-z0-9._-]+)?")
_GGUF_KINDS = ("F16", "BF16", "F32", "Q8_0")


class OllamaConfig(Config, frozen=True):
    """What becomes which model of Ollama's."""

    model: Annotated[Path, doc("the fused model folder")]
    out: Annotated[Path, doc("folder for the GGUF file and the Modelfile")]
    name: Annotated[str, doc("the model's name in Ollama, in lower case")]
    system: Annotated[str, doc("the system message that holds where a conversation brings none")] = ""
    kind: Annotated[Literal["F16", "BF16", "F32", "Q8_0"], doc("type of the weights in the GGUF file")] = "F16"
    force: Annotated[bool, doc("replace the output folder where it exists")] = False

    def check(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} is not a name for Ollama: lower-case letters, digits, '.', '_', '-'")


@dataclass(frozen=True)
class OllamaResult:
    """What was written, and whether Ollama has it."""

    name: str
    gguf: Path
    modelfile: Path
    size_bytes: int
    command: str
    """Creates the model in Ollama."""
    created: bool
    """True where that was done."""


def run(config: OllamaConfig, report: Report = ignore) -> OllamaResult:
    """Write the folder; create the model where Ollama is installed.

    Raises InputError for a model that cannot be written as GGUF, MachineError where `ollama create` fails (the folder
    stays).
    """
    device.prepare()
    from mlx_distill.export.gguf import KINDS, write_gguf
    from mlx_distill.models.load import load_tokenizer

    kind = next(kind for kind in KINDS if kind == config.kind)
    tokenizer = load_tokenizer(config.model)
    file_name = f"{config.model.resolve().name}.gguf"
    with new_folder(config.out, replace=config.force) as scratch:
        written = write_gguf(config.model, scratch / file_name, kind, report)
        write_text(scratch / MODELFILE, modelfile(tokenizer, file_name, config.system, report))
    modelfile_path = config.out / MODELFILE
    command = ["ollama", "create", config.name, "-f", str(modelfile_path)]
    created = _create(command, report)
    return OllamaResult(
        config.name, config.out / file_name, modelfile_path, written.size_bytes, shlex.join(command), created
    )


def modelfile(tokenizer: TokenizerWrapper, gguf: str, system: str, report: Report = ignore) -> str:
    """The Modelfile's text. Without a template of its own, Ollama would guess one from the GGUF file's."""
    from mlx_distill.models.tokenize import end_tokens

    lines = [f"FROM ./{gguf}"]
    if is_chatml(tokenizer):
        lines.append(f'TEMPLATE """{CHATML}"""')
    else:
        report(Warning("The chat template is not ChatML: the Modelfile names none, and Ollama takes the GGUF file's."))
    lines += [f'PARAMETER stop "{token}"' for token in end_tokens(tokenizer)]
    if system:
        lines.append(f'SYSTEM """{system}"""')
    return "\n".join(lines) + "\n"


def is_chatml(tokenizer: TokenizerWrapper) -> bool:
    """Whether the student's own template writes a conversation as CHATML does."""
    turns: Messages = tuple(Message(role, f"the {role}'s text") for role in ("system", "user", "assistant", "user"))
    expected = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)
    rendered = tokenizer.apply_chat_template(
        [turn.to_json() for turn in turns], tokenize=False, add_generation_prompt=True
    )
    return bool(rendered == f"{expected}<|im_start|>assistant\n")


def _create(command: list[str], report: Report) -> bool:
    if shutil.which(command[0]) is None:
        return False
    report(Note(shlex.join(command)))
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = (finished.stderr.strip() or finished.stdout.strip()).splitlines()[-1:] or ["no reason given"]
        raise MachineError(
            f"`ollama create` failed: {reason[0]}", f"Start Ollama (`ollama serve`), then: {shlex.join(command)}"
        )
    return True
