"""Run the command `mlx_lm.generate` with the BLAS that this project loads, and write its tokens to $BENCH_OUT."""

from __future__ import annotations

import json
import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from mlx_distill import cpu


def main() -> None:
    cpu.load_fast_blas()
    command: Any = import_module("mlx_lm.generate")  # the package has a function of that name as well
    found: dict[str, Any] = {"tokens": []}
    stream = command.stream_generate

    def recorded(model: Any, tokenizer: Any, prompt: Any, **more: Any) -> Any:
        found["asked"] = list(prompt)
        started = time.perf_counter()
        for response in stream(model, tokenizer, prompt, **more):
            found["tokens"].append(response.token)
            yield response
        found["writing_seconds"] = round(time.perf_counter() - started, 3)

    command.stream_generate = recorded
    command.main()
    Path(os.environ["BENCH_OUT"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
