"""`export ollama`: a folder with a GGUF file and a Modelfile, and the model in Ollama if it is installed."""

from __future__ import annotations

import shlex
import shutil
import subprocess

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_distill.errors import MachineError
from mlx_distill.events import Note, Report, Warning, ignore
from mlx_distill.export import gguf
from mlx_distill.export.config import GgufConfig, OllamaConfig, OllamaResult
from mlx_distill.formatting import first_line
from mlx_distill.models.load import load_tokenizer
from mlx_distill.models.tokenize import end_tokens
from mlx_distill.storage.atomic import new_folder, write_text

CHATML = """\
{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
"""ChatML as a Go template. Ollama puts the SYSTEM text before messages without a system message.
Source: https://docs.ollama.com/modelfile"""


def run(config: OllamaConfig, report: Report = ignore) -> OllamaResult:
    """Write the folder, and create the model if Ollama is installed.

    Raises InputError for a model that cannot be written as GGUF, MachineError if `ollama create` fails (the folder
    stays).
    """
    tokenizer = load_tokenizer(config.model)
    file_name = f"{config.model.resolve().name}.gguf"
    with new_folder(config.out, replace=config.force) as scratch:
        written = gguf.run(GgufConfig(config.model, scratch / file_name, config.kind), report)
        write_text(scratch / "Modelfile", modelfile(tokenizer, file_name, config.system, report))
    file = config.out / "Modelfile"
    command = ["ollama", "create", config.name, "-f", str(file)]
    line = shlex.join(command)
    is_installed = shutil.which("ollama") is not None
    if is_installed:
        report(Note(line))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["no reason given"]
            raise MachineError(
                f"`ollama create` failed: {first_line(reason[0])}", f"Start Ollama (`ollama serve`), then: {line}"
            )
    return OllamaResult(config.name, config.out / file_name, file, written.size_bytes, line, is_installed)


def modelfile(tokenizer: TokenizerWrapper, file_name: str, system: str, report: Report = ignore) -> str:
    """Return the text of the Modelfile. Without a TEMPLATE, Ollama guesses one from the GGUF file."""
    lines = [f"FROM ./{file_name}"]
    if is_chatml(tokenizer):
        lines.append(f'TEMPLATE """{CHATML}"""')
    else:
        report(Warning("The chat template is not ChatML. The Modelfile names none, and Ollama uses the GGUF file's."))
    lines += [f'PARAMETER stop "{token}"' for token in end_tokens(tokenizer)]
    if system:
        lines.append(f'SYSTEM """{system}"""')
    return "\n".join(lines) + "\n"


def is_chatml(tokenizer: TokenizerWrapper) -> bool:
    """Return True if the student's own template writes a conversation as CHATML does."""
    turns = [{"role": role, "content": f"the {role}'s text"} for role in ("system", "user", "assistant", "user")]
    expected = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return bool(rendered == f"{expected}<|im_start|>assistant\n")
