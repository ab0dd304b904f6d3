"""Load damaged model files: the child process of tests/contract/test_fuzz_files.py.

python -m tests.support.fuzzing KIND FOLDER COUNT SEED   prints the number of each mutation before it is tried
"""

from __future__ import annotations

import copy
import json
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_distill.errors import DistillError
from mlx_distill.models.adapter import load_adapter
from mlx_distill.models.gguf.read import convert_gguf
from mlx_distill.models.load import Student, load_student, load_tokenizer, load_weights
from mlx_distill.models.tokenize import render_prompt
from mlx_distill.records import build_messages

MAX_SECONDS = 20
"""An alarm ends the process if one mutation takes longer."""
MAX_NEW_BYTES = 1 << 30
MAX_MESSAGE = 2000
INTEGERS = (0, 1, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
DEEP: Any = None
for _ in range(900):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3, 10**6, 10**9, 10**12, 10**400, -(10**9), 0.5, 1e308, float("nan"), float("inf"),
    "", "x", "{{ 1 / 0 }}", "\ud800", "\x1b[31m\n", "y" * 10_000, [], [0], ["a", None], {}, {"a": 1}, [10**12] * 3,
    DEEP,
)  # fmt: skip


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """Change a few bytes, most of them near the start, where the headers are."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 6))):
        end = len(changed) if chance.random() < 0.3 else min(len(changed), chance.choice((64, 600, 4000)))
        at = chance.randrange(max(end, 1))
        match chance.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                size = chance.choice((4, 8))
                changed[at : at + size] = (chance.choice(INTEGERS) % (1 << 8 * size)).to_bytes(size, "little")
            case 2:
                del changed[at : at + chance.choice((1, 4, 300))]
            case 3:
                changed[at:at] = changed[at : at + chance.choice((1, 8, 100))]
            case 4:
                del changed[chance.randrange(len(changed) + 1) :]
            case _:
                changed[at : at + 1] = bytes([changed[at] ^ 1 << chance.randrange(8)]) if at < len(changed) else b""
    return bytes(changed)


def mutate_json(data: Any, chance: random.Random) -> Any:
    """Replace, remove or add a value somewhere in decoded JSON."""
    data = copy.deepcopy(data)
    for _ in range(chance.choice((1, 1, 2))):
        place = data
        while True:
            keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(place[key], (dict, list)) and place[key] and chance.random() < 0.7:
                place = place[key]
                continue
            if chance.random() < 0.2:
                del place[key]
            else:
                place[key] = json.loads(json.dumps(chance.choice(VALUES)))  # a copy: it may change next
            break
    return data if chance.random() < 0.98 else chance.choice(VALUES)


def mutate_json_file(text: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return mutate_bytes(text, chance)
    return json.dumps(mutate_json(json.loads(text), chance)).encode()


def mutate_safetensors(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.4:
        return mutate_bytes(data, chance)
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(mutate_json(json.loads(data[8 : 8 + length]), chance)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


Mutation = Callable[[bytes, random.Random], bytes]


class Fuzzer:
    """Tries the files of one kind in a folder that holds `model`, `model.gguf` and `adapter`."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "model"
        self.student = load_student(self.model)
        names: dict[str, dict[Path, Mutation]] = {
            "gguf": {folder / "model.gguf": mutate_bytes},
            "safetensors": {self.model / "model.safetensors": mutate_safetensors},
            "adapter": {
                folder / "adapter/adapter_config.json": mutate_json_file,
                folder / "adapter/adapters.safetensors": mutate_safetensors,
            },
            "tokenizer": {
                self.model / "tokenizer.json": mutate_json_file,
                self.model / "tokenizer_config.json": mutate_json_file,
            },
            "config": {self.model / "config.json": mutate_json_file},
        }
        self.files = names[kind]
        self.load: Callable[[], object] = getattr(self, f"load_{kind}")

    def load_gguf(self) -> None:
        out = self.folder / "converted"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        convert_gguf(self.folder / "model.gguf", out)
        load_student(out)

    def load_safetensors(self) -> None:
        load_student(self.model)

    load_config = load_safetensors

    def load_adapter(self) -> None:
        model, config = load_weights(self.model)
        student = Student(self.model, model, self.student.tokenizer, config, mx.float32)
        load_adapter(student, self.folder / "adapter")

    def load_tokenizer(self) -> None:
        render_prompt(load_tokenizer(self.model), build_messages("Hello", "Be kind."))

    def run(self, count: int, seed: int) -> None:
        originals = {file: file.read_bytes() for file in self.files}
        self.load()
        if sys.platform == "linux":
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MAX_NEW_BYTES, used + MAX_NEW_BYTES))
        refused = 0
        for number in range(count):
            print(number, flush=True)
            chance = random.Random(f"{seed} {number}")
            file = chance.choice(sorted(self.files))
            file.write_bytes(self.files[file](originals[file], chance))
            signal.alarm(MAX_SECONDS)
            try:
                self.load()
            except DistillError as error:
                refused += 1
                for text in (error.message, error.next_step, *error.problems):
                    assert "\n" not in text and len(text) < MAX_MESSAGE, f"not one short line: {text!r}"
            signal.alarm(0)
            file.write_bytes(originals[file])
        print(f"refused {refused}")


if __name__ == "__main__":
    Fuzzer(sys.argv[1], Path(sys.argv[2])).run(int(sys.argv[3]), int(sys.argv[4]))
