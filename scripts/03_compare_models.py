"""Step 3 of 3: compare base, distilled and teacher on the test prompts and the held-out rows."""

from __future__ import annotations

import argparse

from mlx_distill.cli import main
from mlx_distill.config import default_of
from mlx_distill.run.project import ProjectConfig
from mlx_distill.storage.package_data import package_data_path

OUT = "distilled-student"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-teacher", action="store_true", help="leave the teacher out")
    parser.add_argument(
        "--teacher", default=default_of(ProjectConfig, "teacher"), help="anthropic:MODEL or recorded:FILE"
    )
    parser.add_argument(
        "--prompts", default=str(package_data_path("test_prompts.jsonl")), help="the test prompts, JSON lines"
    )
    given = parser.parse_args()
    folders = ["--model", f"{OUT}/base", "--adapter", f"{OUT}/adapter", "--data", f"{OUT}/data", "--out", OUT]
    teacher = ["--no-teacher"] if given.no_teacher else ["--teacher", given.teacher]
    main(["compare", *folders, "--test-prompts", given.prompts, *teacher])
