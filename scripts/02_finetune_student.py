"""Step 2 of 3: train on teacher_data.jsonl. distilled-student/ gets the adapter and the fused model."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from mlx_distill import device
from mlx_distill.cli.output import print_error, reporting
from mlx_distill.cli.run import print_stages
from mlx_distill.config import default_of
from mlx_distill.errors import DistillError, MissingError
from mlx_distill.run import pipeline
from mlx_distill.run.project import Project, ProjectConfig
from mlx_distill.run.stages import CONVERT, FUSE, PREPARE, TRAIN

OUT = Path("distilled-student")
BASE, DATA, ADAPTER, MODEL = (OUT / part for part in ("base", "data", "adapter", "model"))
STAGES = (CONVERT, PREPARE, TRAIN, FUSE)
SECTIONS = {
    "convert": {"out": BASE},
    "prepare": {"data": DATA, "model": BASE},
    "train": {"data": DATA, "model": BASE, "adapter": ADAPTER},
    "fuse": {"data": DATA, "model": BASE, "adapter": ADAPTER, "out": MODEL},
}


def finetune(student: str) -> None:
    """Run the stages that are not up to date, in distilled-student/."""
    for name in ("teacher_data.jsonl", "collect.json"):
        if not Path(name).exists():
            raise MissingError(f"{name} is missing.", "Make it with scripts/01_collect_teacher_data.py.")
        DATA.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(name, DATA / name)
    project = Project.from_values(Path("options"), {"name": OUT.name, "student": student, **SECTIONS})
    configs = pipeline.stage_configs(project)
    with pipeline.keep_awake(), reporting() as report:
        outcomes = [pipeline.update_stage(stage, configs[stage.name], OUT / "manifests", report) for stage in STAGES]
    print_stages(outcomes)
    print(f"Adapter: {ADAPTER}\nModel:   {MODEL}\nNext:    python scripts/03_compare_models.py --no-teacher")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--student", default=default_of(ProjectConfig, "student"), help="a Hub id, a folder, a GGUF file, or `sample`"
    )
    device.configure_process()
    try:
        finetune(parser.parse_args().student)
    except DistillError as error:
        print_error(error)
        sys.exit(error.exit_code)
