"""MLX's memory and GPU errors, turned into advice.

MLX 0.32 and later raises a RuntimeError at the next evaluation after the GPU failed. Older versions, and macOS itself,
end the process. The texts are those of mlx/backend/metal and of Metal's command buffer errors.
"""

from __future__ import annotations

import re

from mlx_distill.errors import MachineError

AGAIN = "Run the same command again; training continues from the last checkpoint."
SMALLER = "If it happens again, train with smaller micro-batches: --set train.micro_batch_tokens=512"
CLOSE_PROGRAMS = f"{AGAIN} Close other programs first. {SMALLER}"
PREFIXES = ("[METAL]", "[metal::", "[malloc", "std::bad_alloc", "Resource limit")
"""Beginnings of the error messages of MLX about memory and the GPU. Any other RuntimeError is a bug."""

CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        "ImpactingInteractivity",
        "macOS stopped the GPU work because the display needed the GPU",
        f"{AGAIN} Let the display sleep while it runs, or close programs that draw a lot. {SMALLER}",
    ),
    ("Timeout", "macOS stopped the GPU work because one piece of it took too long", f"{AGAIN} {SMALLER}"),
    ("OutOfMemory", "the GPU ran out of memory", CLOSE_PROGRAMS),
    ("Insufficient Memory", "the GPU ran out of memory", CLOSE_PROGRAMS),
    ("maximum allowed buffer size", "one array is larger than the GPU allows", SMALLER),
    ("Resource limit", "the GPU has too many buffers in use", f"{AGAIN} {SMALLER}"),
    ("[malloc", "there is not enough memory", CLOSE_PROGRAMS),
    ("std::bad_alloc", "there is not enough memory", CLOSE_PROGRAMS),
    ("InnocentVictim", "the GPU was reset because of another program", AGAIN),
    (
        "SubmissionsIgnored",
        "the GPU was reset because of earlier errors",
        f"{AGAIN} If it happens again, restart the Mac.",
    ),
    ("Hang", "the GPU stopped responding", f"{AGAIN} {SMALLER}"),
    (
        "No Metal device",
        "Metal is not available, as in a sandbox or a virtual machine",
        "Run the command in a terminal on the Mac, as a user who is logged in to its desktop.",
    ),
)
"""(text in the error, cause, advice). The first match counts."""


_BEFORE_MESSAGE = re.compile(
    r"^(RuntimeError: |MemoryError: |libc\+\+abi: |terminating due to uncaught exception of type [\w:]+: "
    r"|terminate called after throwing an instance of '|\s*what\(\):\s*)*"
)
"""Words of Python and of C++ runtimes before the message of an exception that ended a process."""


def is_machine_error(text: str) -> bool:
    """Return whether an error text, or the last lines of a process's error output, is about memory or the GPU."""
    lines = [_BEFORE_MESSAGE.sub("", line) for line in text.strip().splitlines()]
    return any(line.startswith(PREFIXES) for line in lines) or "kIOGPUCommandBufferCallbackError" in text


def is_out_of_memory(text: str) -> bool:
    """Return True if smaller micro-batches may help."""
    words = ("OutOfMemory", "Insufficient Memory", "[malloc", "std::bad_alloc", "maximum allowed buffer size")
    return is_machine_error(text) and any(word in text for word in words)


def explain(error: BaseException | str) -> MachineError | None:
    """Return a MachineError with advice for an error of MLX or a process's error output; None for any other error."""
    text = str(error)
    if not is_machine_error(text):
        return None
    for word, cause, advice in CAUSES:
        if word in text:
            return MachineError(f"{cause if cause.startswith('macOS') else cause[0].upper() + cause[1:]}.", advice)
    return MachineError(text.strip().splitlines()[-1][:300], AGAIN)
