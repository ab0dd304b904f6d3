"""Settings and result of a comparison. Light: importing it loads no mlx and no numpy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
from msgspec.structs import force_setattr

from mlx_distill.compare.report import Report
from mlx_distill.config import Config, doc
from mlx_distill.models.config import local_folder
from mlx_distill.models.context import ContextConfig
from mlx_distill.records import STUDENT_SYSTEM
from mlx_distill.storage import files
from mlx_distill.storage.package_data import package_data_path
from mlx_distill.teachers.pricing import MAX_COST_HELP, PRICES_HELP, TRACK_COSTS_HELP, Budget, Price
from mlx_distill.teachers.recorded import recording_files
from mlx_distill.teachers.registry import teacher_usage

TEST_PROMPTS = "test_prompts.jsonl"


class AnswerConfig(Config, frozen=True, kw_only=True):
    """Settings that both kinds of comparison share."""

    renamed: ClassVar[Mapping[str, str]] = {"cost": "track_costs"}

    data: Annotated[Path, doc("folder with test.jsonl; the teacher's answers to the test prompts are kept here")]
    out: Annotated[Path, doc("folder for report.html, report.md and report.json")]
    test_prompts: Annotated[Path, doc("JSON lines of prompts for both models; default: the four shipped ones")] = Path()
    teacher: Annotated[
        str, doc(f"also show this teacher's answers, in its context: {teacher_usage()}; empty for none")
    ] = ""
    model: Annotated[Path, doc("base model of the adapters; default: the one that their config names")] | None = None
    teacher_context: ContextConfig = ContextConfig()
    judge: Annotated[
        str, doc("teacher that judges which answer is better, asked in both orders, at its price; empty for none")
    ] = ""
    test_rows: Annotated[int, doc("number of held-out rows whose prompts the models also answer", ge=0)] = 8
    system: Annotated[str, doc("system message of the test prompts")] = STUDENT_SYSTEM
    max_tokens: Annotated[int, doc("maximum length of an answer in tokens", ge=1)] = 512
    temperature: Annotated[float, doc("0 takes the most probable token, more samples", ge=0, le=10)] = 0.0
    seed: Annotated[int, doc("random seed of sampling and intervals", ge=0)] = 0
    execute: Annotated[
        bool,
        doc(
            "run the Python in the answers, with limits on time, memory, files and processes; not a sandbox: the code "
            "has your rights and can read your files and keys. macOS does not limit memory and processes, and a "
            "process that leaves its group goes on; there, sandbox-exec denies the network and writes outside the "
            "work folder"
        ),
    ] = False
    max_cost: Annotated[float, doc(MAX_COST_HELP, ge=0)] | None = None
    track_costs: Annotated[bool, doc(TRACK_COSTS_HELP)] = True
    prices: Annotated[Mapping[str, Price], doc(PRICES_HELP)] = msgspec.field(default_factory=dict)

    @property
    def budget(self) -> Budget:
        """The limit on what teacher and judge may cost."""
        return Budget(self.max_cost, self.prices, self.track_costs)

    def __post_init__(self) -> None:
        if self.test_prompts == Path():
            force_setattr(self, "test_prompts", package_data_path(TEST_PROMPTS))
        super().__post_init__()

    def check(self) -> None:
        Budget(self.max_cost, self.prices, self.track_costs)

    def outputs(self) -> list[Path]:
        """Return the files that the comparison writes."""
        return [self.out / name for name in (files.REPORT_JSON, files.REPORT_MARKDOWN, files.REPORT_HTML)]


class CompareConfig(AnswerConfig, frozen=True, kw_only=True):
    """A base model against the same model with an adapter."""

    model: Annotated[Path, doc("the student: an MLX model folder")]
    adapter: Annotated[Path, doc("folder of the adapter that was trained on it")]

    def inputs(self) -> list[Path]:
        """Return the files that decide the result; a folder stands for all files in it."""
        adapter = [self.adapter / name for name in (files.ADAPTER_WEIGHTS, files.ADAPTER_CONFIG)]
        recorded = [path for teacher in (self.teacher, self.judge) for path in recording_files(teacher)]
        folder = local_folder(self.teacher, self.model)
        teacher = [*self.teacher_context.inputs(), *([folder] if folder and folder != self.model else [])]
        return [self.model, *adapter, self.data / files.TEST, self.test_prompts, *recorded, *teacher]


class PairConfig(AnswerConfig, frozen=True, kw_only=True):
    """Two adapters or models."""

    renamed: ClassVar[Mapping[str, str]] = {**AnswerConfig.renamed, "first": "a", "second": "b"}

    a: Annotated[Path, doc("an adapter folder or an MLX model folder")]
    b: Annotated[Path, doc("another one, or the same: then it samples with the next seed")]
    out: Annotated[Path, doc("folder for the report; default: reports/A-vs-B")] = Path()

    def __post_init__(self) -> None:
        if self.out == Path():
            force_setattr(self, "out", Path("reports", f"{self.a.resolve().name}-vs-{self.b.resolve().name}"))
        super().__post_init__()


class CompareResult(msgspec.Struct, frozen=True):
    """The report, and the files that it was written to."""

    report: Report
    json_file: Path
    markdown_file: Path
    html_file: Path

    def summary(self) -> str:
        """Return one line with the main figures."""
        return self.report.summary()
