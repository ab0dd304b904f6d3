"""Step 1 of 3: ask the teacher; each answer becomes a line of teacher_data.jsonl in this folder as it arrives."""

from __future__ import annotations

import argparse

from mlx_distill.cli import main
from mlx_distill.config import default_of
from mlx_distill.run.project import ProjectConfig
from mlx_distill.storage.package_data import package_data_path
from mlx_distill.teachers.registry import teacher_usage

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default=default_of(ProjectConfig, "teacher"), help=teacher_usage())
    parser.add_argument("--prompts", default=str(package_data_path("prompts.jsonl")), help="JSON lines, or plain text")
    given = parser.parse_args()
    main(["collect", "--teacher", given.teacher, "--prompts", given.prompts, "--out", "."])
