#!/usr/bin/env python3
"""Measure the time to the first token in a long chat: with the prefix cache, turn 10 should be about as fast as turn 2.

    python scripts/bench/chat.py --model models/SmolLM2-135M-Instruct [--adapter adapters/NAME] [--json]

Every conversation asks the same ten questions. The script prints the median and the minimum time of each turn. It exits
with 1 if turn 10 takes more than 1.5 times as long as turn 2. The sample student needs about four minutes on two idle
CPU cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from mlx_distill import device

device.prepare()  # before the first import of mlx

from mlx_distill.chat.conversation import Conversation  # noqa: E402
from mlx_distill.models.adapter import open_student  # noqa: E402
from mlx_distill.models.chat_model import ChatModel  # noqa: E402

LIMIT = 1.5
DAYS = ("sunny", "rainy", "windy", "snowy", "foggy", "happy", "quiet", "busy", "long", "short")
"""One for each turn. All questions have the same length, so that turns differ only in their history."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="an MLX model folder")
    parser.add_argument("--adapter", type=Path, help="an adapter folder to put on it")
    parser.add_argument(
        "--answer-tokens", type=int, default=48, help="maximum number of tokens of an answer  [default: 48]"
    )
    parser.add_argument("--conversations", type=int, default=5, help="number of repetitions  [default: 5]")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    result = measure(options.model, options.adapter, options.answer_tokens, options.conversations)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for row in result["turns"]:
            print(
                f"turn {row['turn']:2}: first token after {row['median_seconds']:.3f} s (minimum "
                f"{row['min_seconds']:.3f}), {row['n_prompt']} tokens, {row['n_reused']} of them cached"
            )
        print(f"turn 10 / turn 2: {result['ratio']:.2f} (medians of {options.conversations}; limit {LIMIT})")
    return 0 if result["ratio"] <= LIMIT else 1


def measure(model: Path, adapter: Path | None, answer_tokens: int, conversations: int) -> dict[str, Any]:
    chat_model = ChatModel(*open_student(model, adapter))
    seconds: list[list[float]] = [[] for _ in DAYS]
    rows: list[dict[str, Any]] = []
    for _ in range(conversations):
        conversation = Conversation(chat_model, max_tokens=answer_tokens)
        rows = []
        for number, day in enumerate(DAYS):
            started = time.perf_counter()
            pieces = conversation.ask(f"Give me a tip for a {day} day.")
            next(pieces)
            seconds[number].append(time.perf_counter() - started)
            for _piece in pieces:
                pass
            turn = conversation.turn
            assert turn is not None
            rows.append({"turn": number + 1, "n_prompt": turn.n_prompt, "n_reused": turn.n_reused})
    for row, times in zip(rows, seconds, strict=True):
        row["min_seconds"] = round(min(times), 4)
        row["median_seconds"] = round(statistics.median(times), 4)
    return {
        "model": str(model),
        "adapter": str(adapter) if adapter else None,
        "conversations": conversations,
        "turns": rows,
        "ratio": round(rows[9]["median_seconds"] / rows[1]["median_seconds"], 3),
        "limit": LIMIT,
    }


if __name__ == "__main__":
    sys.exit(main())
