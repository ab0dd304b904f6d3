"""Time and peak memory of `prepare` by number of rows, and the exponent of their growth.

    python scripts/bench/prepare.py --model models/SmolLM2-135M-Instruct [--rows 1000 10000] [--json]

Each size runs in a new process on synthetic records: prompts of 10 to 20 words and answers of 150 words, drawn with
Zipf frequencies from the words of the embedded sample. One answer in ten nearly repeats an earlier one. The time
includes reading and writing the files. The exponent is that of the processor time, which other programs affect less.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import accumulate
from pathlib import Path

from mlx_distill import device
from mlx_distill.formatting import format_bytes, format_duration
from mlx_distill.prepare import PrepareConfig
from mlx_distill.storage.files import TEACHER_DATA
from mlx_distill.storage.package_data import package_data_path

PROMPT_WORDS = (10, 20)
ANSWER_WORDS = 150
DUPLICATE_FRACTION = 0.1
SEED = 0


def write_records(path: Path, n_rows: int) -> None:
    """Write synthetic teacher records."""
    draw = random.Random(SEED)
    sample = (package_data_path("sample") / TEACHER_DATA).read_text(encoding="utf-8")
    words = [word for word, _ in Counter(re.findall("[A-Za-z]+", sample)).most_common()]
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    answers: list[list[str]] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(n_rows):
            prompt = draw.choices(words, cum_weights=weights, k=draw.randint(*PROMPT_WORDS))
            answer = draw.choices(words, cum_weights=weights, k=ANSWER_WORDS)
            if answers and draw.random() < DUPLICATE_FRACTION:
                answer = list(draw.choice(answers))
                answer[draw.randrange(ANSWER_WORDS)] = "changed"
            elif len(answers) < 1000:
                answers.append(answer)
            record = {"messages": [{"role": "user", "content": " ".join(prompt)}], "answer": " ".join(answer)}
            file.write(json.dumps({"prompt_id": f"row-{number}", **record}) + "\n")


def measure(data: Path, model: Path) -> dict[str, float]:
    """Prepare `data` in this process."""
    device.prepare()
    from mlx_distill.prepare.run import run  # imports mlx

    started, cpu_started = time.perf_counter(), time.process_time()
    result = run(PrepareConfig(data=data, model=model))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "rows": result.n_records,
        "kept": result.n_rows,
        "tokens": result.total.n_tokens,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "peak_bytes": peak,
    }


def growth_exponent(sizes: list[dict[str, float]]) -> float | None:
    """Return the least-squares slope of log processor time over log rows; None for a single size."""
    points = [(math.log(size["rows"]), math.log(size["cpu_seconds"])) for size in sizes]
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a converted student")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000], help="e.g. --rows 1000000")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.model)))
        return
    sizes = []
    for n_rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            write_records(Path(folder) / TEACHER_DATA, n_rows)
            command = [sys.executable, __file__, "--model", str(options.model), "--measure", folder]
            sizes.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        if not options.json:
            size = sizes[-1]
            total = f"{format_duration(size['seconds']):>12}  {format_bytes(size['peak_bytes']):>9}"
            cpu = f"{size['cpu_seconds'] / size['rows'] * 1e6:,.0f} µs of processor time a row"
            print(f"{size['rows']:>9,} rows  {total}  {cpu}  {size['tokens'] / size['kept']:.0f} tokens a row")
    exponent = growth_exponent(sizes)
    if options.json:
        print(json.dumps({"sizes": sizes, "exponent": exponent}))
    elif exponent is not None:
        print(f"processor time grows with rows to the power of {exponent:.2f}")


if __name__ == "__main__":
    main()
