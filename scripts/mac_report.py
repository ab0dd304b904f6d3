#!/usr/bin/env python3
"""Run the half-hour test plan of docs/guides/on-a-mac.md and write one file to paste into an issue.

    scripts/quickstart && .venv/bin/python scripts/mac_report.py [--only NAME] [--out FILE]

Each section runs commands and keeps their output, time and exit code. A section that fails is part of the report. It
works in folders of its own, changes nothing in the project, and sends nothing anywhere. The sections that need no Mac
run on Linux, too.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PY = sys.executable
CLI = (PY, "-m", "mlx_distill")
WATCHDOG = "AGX_RELAX_CDM_CTXSTORE_TIMEOUT"
"""See mlx_distill/train/child_process.py."""
STUDENT = "SmolLM2-135M-Instruct"
MAX_LINES = 60
"""Lines of output that the report keeps of each command: the last ones."""
TIMEOUT_SECONDS = 1200


@dataclass(frozen=True)
class Command:
    """A program and the environment variables that it gets."""

    words: Sequence[str]
    variables: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        words = ["python" if word == PY else word for word in self.words]
        return " ".join([*(f"{name}={value}" for name, value in self.variables), *words])


@dataclass(frozen=True)
class Section:
    """A question that only a Mac can answer, and the commands that answer it."""

    name: str
    question: str
    commands: Sequence[Command]


def command(*words: str, **variables: str) -> Command:
    return Command(words, tuple(variables.items()))


def probe(name: str, **variables: str) -> Command:
    """Return the command that runs a function of PROBES in a new process."""
    return command(PY, str(Path("scripts", "mac_report.py")), "--probe", name, **variables)


def sections(scratch: Path) -> list[Section]:
    """Return the plan, in the order of the guide."""
    demo, weak = str(scratch / "demo"), str(scratch / "weak")
    init = (*CLI, "init")
    run = (*CLI, "-C", demo, "run")
    bench = str(Path("scripts", "bench"))
    return [
        Section(
            "machine",
            "Which Mac, Python and wheel? Does the Python see the real version of macOS, and which wheel did pip take?",
            [
                command("sw_vers"),
                command("sysctl", "machdep.cpu.brand_string", "hw.memsize", "iogpu.wired_limit_mb"),
                command(PY, "-c", "import platform, sys; print(sys.version, platform.mac_ver(), platform.machine())"),
                command("xcode-select", "-p"),
                command("sh", "-c", "cat .venv/lib/python*/site-packages/mlx_metal*/WHEEL"),
                command("sh", "-c", "ls -lO .venv/lib/python*/site-packages/*.pth"),
                command(*CLI, "doctor"),
            ],
        ),
        Section("sync", "What does one durable line cost? F_FULLFSYNC is slow on some disks.", [probe("sync")]),
        Section(
            "run",
            "Does the whole job run? How much memory does it take, and what was planned?",
            [
                command(*init, demo, "--sample"),
                command(*run, "--set", "train.time_budget_minutes=4"),
                command("memory_pressure", "-Q"),
            ],
        ),
        Section(
            "steps",
            "Is the compiled step faster than the eager one, and are the losses equal?",
            [probe("steps", DEMO=demo), probe("steps", DEMO=demo, MLX_DISTILL_DTYPE="float32")],
        ),
        Section(
            "memory",
            "Is the measured peak within 25 % of the plan?",
            [command(PY, f"{bench}/memory.py"), command(PY, f"{bench}/memory.py", "--dtype", "float32")],
        ),
        Section(
            "speed",
            "How fast is training compared with mlx_lm.lora, on the same rows?",
            [command(PY, f"{bench}/train.py", "--runs", "1", "--json")],
        ),
        Section(
            "fuse",
            "Does fusing accept an adapter with a small gain?",
            [
                command(*init, weak, "--sample"),
                command(
                    *(*CLI, "-C", weak, "run", "--set", "train.epochs=1", "--set", "train.learning_rate=1e-4"),
                    *("--set", "train.time_budget_minutes=2"),
                ),
            ],
        ),
        Section("chat", "How many tokens a second: base, adapter, and fused?", [probe("chat", DEMO=demo)]),
        Section(
            "display",
            "Does macOS stop a training while the display is on? Keep it on, and move windows meanwhile.",
            [
                command(*CLI, "-C", demo, "train", "--force", "--time-budget-minutes", "3", **{WATCHDOG: value})
                for value in ("1", "0")
            ],
        ),
        Section(
            "tests",
            "Do the tests pass?",
            [
                command("scripts/test", "-q", "-x", "tests/unit", MLX_DISTILL_DTYPE=kind)
                for kind in ("float32", "bfloat16")
            ],
        ),
    ]


def probe_sync() -> None:
    """Print the time of a durable line and of one that only survives the process."""
    from mlx_distill.storage.journal import Journal

    for durable in (True, False):
        with tempfile.TemporaryDirectory() as folder, Journal(Path(folder, "journal.jsonl")) as journal:
            started = time.perf_counter()
            for number in range(100):
                journal.append({"number": number, "text": "x" * 2000}, durable=durable)
            milliseconds = (time.perf_counter() - started) * 10
        print(f"durable={durable}: {milliseconds:.2f} ms a line")


def probe_steps() -> None:
    """Print losses and times of the same six steps, eager and compiled, on the rows of the sample project."""
    from mlx_distill import device

    device.configure_process()
    hardware = device.prepare()
    import mlx.core as mx

    from mlx_distill.models.load import load_student
    from mlx_distill.train import TrainConfig
    from mlx_distill.train.data import read_rows
    from mlx_distill.train.execution import Execution
    from mlx_distill.train.lora import make_trainable
    from mlx_distill.train.objectives.sft import Sft
    from mlx_distill.train.step import TrainStep

    demo = Path(os.environ["DEMO"])
    is_metal = hardware.kind == "metal"
    for compiled in (False, True):
        mx.reset_peak_memory()
        config = TrainConfig(demo / "models" / STUDENT, demo / "data" / "demo", demo / "unused", batch_size=4)
        student = load_student(config.model, dtype=hardware.dtype)
        make_trainable(student, config, cast_adapters=is_metal)
        objective = Sft(config, student)
        rows = read_rows(config.data / "train.jsonl", objective, config.max_length)
        execution = Execution(device.streams()[:1], compiled, is_metal, length_multiple=32)
        steps = TrainStep(objective, rows, 4096, execution)
        steps.optimizer.init(student.model.trainable_parameters())
        found = [steps.step(range(4), 1e-3, number) for number in range(1, 7)]
        losses = " ".join(f"{step.train_loss:.6f}" for step in found)
        seconds = " ".join(f"{step.step_seconds:.3f}" for step in found)
        peak = mx.get_peak_memory() / 1e9
        print(f"{'compiled' if compiled else 'eager'}, {hardware.dtype}: {found[0].tokens} tokens a step")
        print(f"  losses  {losses}\n  seconds {seconds} (the first ones compile)\n  peak    {peak:.2f} GB")


def probe_chat() -> None:
    """Print the tokens per second of base, adapter and fused model on the sample project."""
    from mlx_distill import device

    device.configure_process()
    device.prepare()
    from mlx_lm.generate import wired_limit

    from mlx_distill.models.adapter import open_student
    from mlx_distill.models.chat_model import ChatModel
    from mlx_distill.models.generate import Sampling
    from mlx_distill.records import Message

    demo = Path(os.environ["DEMO"])
    models = demo / "models"
    choices = {"base": (models / STUDENT, None), "adapter": (models / STUDENT, demo / "adapters" / "demo")}
    for name, (model, adapter) in {**choices, "fused": (models / "demo", None)}.items():
        student, loaded = open_student(model, adapter)
        with wired_limit(student.model):
            chat = ChatModel(student, loaded)
            prompt = chat.render((Message("user", "Write a queue in Python, with tests."),))
            for _ in range(2):  # the first answer loads kernels
                started, n_tokens = time.perf_counter(), 0
                for _ in chat.stream(prompt, max_tokens=128, sampling=Sampling()):
                    n_tokens += 1
        print(f"{name} ({student.dtype}): {n_tokens / (time.perf_counter() - started):.1f} tokens/s, {n_tokens} tokens")


PROBES: dict[str, Callable[[], None]] = {"sync": probe_sync, "steps": probe_steps, "chat": probe_chat}


def run(wanted: Command, timeout: float = TIMEOUT_SECONDS) -> str:
    """Run a command in the repository. Return its Markdown: exit code, seconds and the end of its output."""
    started, python_path = time.monotonic(), os.pathsep.join(filter(None, [str(REPOSITORY), os.getenv("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": python_path, **dict(wanted.variables)}
    try:
        finished = subprocess.run(
            wanted.words,
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
        end, output = f"exit code {finished.returncode}", finished.stdout
    except subprocess.TimeoutExpired as error:
        end, output = f"stopped after {timeout:.0f} s", error.stdout or b""
    except OSError as error:
        end, output = f"not run: {error.strerror}", b""
    lines = output.decode("utf-8", "replace").replace("```", "~~~").splitlines()
    cut = [f"... ({len(lines) - MAX_LINES} lines before)"] if len(lines) > MAX_LINES else []
    shown = "\n".join([f"$ {wanted}", *cut, *lines[-MAX_LINES:]])
    return f"```\n{private(shown)}\n```\n{end}, {time.monotonic() - started:.1f} s\n"


def private(text: str) -> str:
    """Return the text without the name of the user."""
    return text.replace(str(Path.home()), "~")


def main() -> int:
    """Run the sections and write the report after each one, so that an interrupted report is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="run this section; can be repeated")
    parser.add_argument("--out", type=Path, default=Path("mac-report.md"), help="the file to write")
    parser.add_argument("--list", action="store_true", help="print the sections and their commands, and run nothing")
    parser.add_argument("--probe", choices=PROBES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe:
        PROBES[arguments.probe]()
        return 0
    with tempfile.TemporaryDirectory(prefix="mac-report-") as scratch:
        plan = sections(Path(scratch))
        unknown = set(arguments.only) - {section.name for section in plan}
        if unknown:
            parser.error(f"unknown section {', '.join(sorted(unknown))}: choose from {', '.join(s.name for s in plan)}")
        report = f"# Report of {platform.platform()}, {time.strftime('%Y-%m-%d')}\n"
        for section in plan:
            if arguments.only and section.name not in arguments.only:
                continue
            print(f"{section.name}: {section.question}", flush=True)
            report += f"\n## {section.name}\n\n{section.question}\n"
            for wanted in section.commands:
                print(f"  {wanted}", flush=True)
                if not arguments.list:
                    report += f"\n{run(wanted)}"
                    arguments.out.write_text(report, encoding="utf-8")
    if not arguments.list:
        print(f"Paste {arguments.out} into an issue.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
