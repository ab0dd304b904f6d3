#!/usr/bin/env python3
"""Time to the first token in a long chat: turn 10 against turn 2, which the memory between turns should keep alike.

    python scripts/bench/chat.py --model models/SmolLM2-135M-Instruct [--adapter adapters/NAME] [--json]

Every conversation asks the same ten questions. A turn's figure is its median time over the conversations; the least is
printed with it. Exits with 1 if turn 10 takes more than 1.5 times as long as turn 2. Some four minutes with the
sample student on two cores without a GPU, which should have nothing else to do.
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

LIMIT = 1.5
DAYS = ("sunny", "rainy", "windy", "snowy", "foggy", "happy", "quiet", "busy", "long", "short")
"""One a turn, in questions of one length: the turns differ only in what stands before them."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="an MLX model folder")
    parser.add_argument("--adapter", type=Path, help="an adapter folder to put on it")
    parser.add_argument("--answer-tokens", type=int, default=48, help="longest answer  [default: 48]")
    parser.add_argument("--conversations", type=int, default=5, help="how often all is done  [default: 5]")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    device.configure_process()
    result = measure(options.model, options.adapter, options.answer_tokens, options.conversations)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for row in result["turns"]:
            print(
                f"turn {row['turn']:2}: first token after {row['median_seconds']:.3f} s (least "
                f"{row['least_seconds']:.3f}), {row['n_prompt']} tokens, {row['n_reused']} of them known"
            )
        print(f"turn 10 / turn 2: {result['ratio']:.2f} of medians over {options.conversations}, at most {LIMIT}")
    return 0 if result["ratio"] <= LIMIT else 1


def measure(model: Path, adapter: Path | None, answer_tokens: int, conversations: int) -> dict[str, Any]:
    from mlx_distill.chat.conversation import Conversation
    from mlx_distill.models.adapter import load_adapter
    from mlx_distill.models.chat_model import ChatModel
    from mlx_distill.models.config import ChatConfig
    from mlx_distill.models.load import load_student

    student = load_student(model)
    attached = load_adapter(student, adapter) if adapter else None
    seconds: list[list[float]] = [[] for _ in DAYS]
    rows: list[dict[str, Any]] = []
    for _ in range(conversations):
        chat_model = ChatModel(student, attached)
        conversation = Conversation(chat_model, ChatConfig(model, max_tokens=answer_tokens))
        rows = []
        for number, day in enumerate(DAYS):
            started = time.perf_counter()
            pieces = conversation.ask(f"Give me a tip for a {day} day.")
            next(pieces)
            seconds[number].append(time.perf_counter() - started)
            for _piece in pieces:
                pass
            n_prompt = len(chat_model.render(conversation.messages[:-1]))
            rows.append({"turn": number + 1, "n_prompt": n_prompt, "n_reused": chat_model.n_reused})
    for row, times in zip(rows, seconds, strict=True):
        row["least_seconds"] = round(min(times), 4)
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
