"""MLX's memory and GPU errors, turned into advice.

MLX 0.32 and later raises a RuntimeError at the next evaluation after the GPU failed. Older versions, and macOS itself,
end the process. The texts are those of mlx/backend/metal and of Metal's command buffer errors.
"""

from __future__ import annotations

import re

from mlx_distill.errors import MachineError

AGAIN = "Run the same command again."
CONTINUE = "Run `mlx-distill run` again, or `mlx-distill train --resume`: it continues from the last checkpoint."
SMALLER_STUDENT = "If it happens again, use a smaller or a quantised student."
SMALLER_MICRO_BATCHES = (
    "If it happens again, train with smaller micro-batches: `run --set train.micro_batch_tokens=512`, or "
    "`train --micro-batch-tokens 512`."
)
CLOSE_PROGRAMS = "Close other programs."
PREFIXES = ("[METAL]", "[metal::", "[malloc", "std::bad_alloc", "Resource limit")
"""Beginnings of the error messages of MLX about memory and the GPU. Any other RuntimeError is a bug."""

CAUSES: tuple[tuple[str, str, str, bool], ...] = (
    (
        "ImpactingInteractivity",
        "macOS stopped the GPU work because the display needed the GPU",
        "Let the display sleep while it runs, or close programs that draw a lot.",
        True,
    ),
    ("Timeout", "macOS stopped the GPU work because one piece of it took too long", "", True),
    ("OutOfMemory", "the GPU ran out of memory", CLOSE_PROGRAMS, True),
    ("Insufficient Memory", "the GPU ran out of memory", CLOSE_PROGRAMS, True),
    ("maximum allowed buffer size", "one array is larger than the GPU allows", "", True),
    ("Resource limit", "the GPU has too many buffers in use", "", True),
    ("[malloc", "there is not enough memory", CLOSE_PROGRAMS, True),
    ("std::bad_alloc", "there is not enough memory", CLOSE_PROGRAMS, True),
    ("InnocentVictim", "the GPU was reset because of another program", "", False),
    (
        "SubmissionsIgnored",
        "the GPU was reset because of earlier errors",
        "If that does not help, restart the Mac.",
        False,
    ),
    ("Hang", "the GPU stopped responding", "", True),
    (
        "No Metal device",
        "Metal is not available, as in a sandbox or a virtual machine",
        "Use a terminal on the Mac, as a user who is logged in to its desktop.",
        False,
    ),
)
"""(text in the error, cause, advice, whether less work at a time may help). The first match counts."""


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


def explain(error: BaseException | str, *, training: bool = False) -> MachineError | None:
    """Return a MachineError with advice for an error of MLX or a process's error output; None for any other error."""
    text = str(error)
    if not is_machine_error(text):
        return None
    again, smaller = (CONTINUE, SMALLER_MICRO_BATCHES) if training else (AGAIN, SMALLER_STUDENT)
    for word, cause, advice, is_too_much in CAUSES:
        if word in text:
            steps = [advice, again, smaller if is_too_much else ""]
            message = cause if cause.startswith("macOS") else cause[0].upper() + cause[1:]
            return MachineError(f"{message}.", " ".join(filter(None, steps)))
    return MachineError(text.strip().splitlines()[-1][:300], again)
