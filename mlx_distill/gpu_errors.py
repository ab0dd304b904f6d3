"""MLX's memory and GPU errors, turned into advice.

A failed command buffer is a RuntimeError from the next evaluation (MLX 0.32 and later); older versions, and the system
itself, end the process. The texts are those of mlx/backend/metal and of Metal's command buffer errors.
"""

from __future__ import annotations

from mlx_distill.errors import MachineError

AGAIN = "Run the same command again; training continues from the last checkpoint."
SMALLER = "If it happens again, train with smaller micro-batches: --set train.micro_batch_tokens=512"
PREFIXES = ("[METAL]", "[metal::", "[malloc", "std::bad_alloc", "Resource limit")
"""How MLX's errors start that are about the machine, and not about the program."""

CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        "ImpactingInteractivity",
        "macOS stopped the GPU work because the display needed the GPU",
        f"{AGAIN} Let the display sleep while it runs, or close programs that draw a lot. {SMALLER}",
    ),
    ("Timeout", "macOS stopped the GPU work because one piece of it took too long", f"{AGAIN} {SMALLER}"),
    ("OutOfMemory", "the GPU ran out of memory", f"{AGAIN} Close other programs first. {SMALLER}"),
    ("Insufficient Memory", "the GPU ran out of memory", f"{AGAIN} Close other programs first. {SMALLER}"),
    ("maximum allowed buffer size", "one array is larger than the GPU allows", SMALLER),
    ("Resource limit", "the GPU has too many buffers in use", f"{AGAIN} {SMALLER}"),
    ("[malloc", "there is not enough memory", f"{AGAIN} Close other programs first. {SMALLER}"),
    ("std::bad_alloc", "there is not enough memory", f"{AGAIN} Close other programs first. {SMALLER}"),
    ("InnocentVictim", "the GPU was reset because of another program", AGAIN),
    ("SubmissionsIgnored", "the GPU was reset because of earlier errors", f"{AGAIN} If it happens again, restart."),
    ("Hang", "the GPU stopped responding", f"{AGAIN} {SMALLER}"),
    (
        "No Metal device",
        "Metal is not available, as in a sandbox or a virtual machine",
        "Run it in a terminal of a user who is logged in at the screen.",
    ),
)
"""A word of the error text, what happened, and what helps. The first match counts."""


def is_machine_error(text: str) -> bool:
    """Return whether an error text, or the last lines of a process's error output, is about memory or the GPU."""
    lines = [line.removeprefix("RuntimeError: ").removeprefix("libc++abi: ") for line in text.strip().splitlines()]
    return any(line.startswith(PREFIXES) for line in lines) or "kIOGPUCommandBufferCallbackError" in text


def is_out_of_memory(text: str) -> bool:
    """Return whether smaller micro-batches may help."""
    words = ("OutOfMemory", "Insufficient Memory", "[malloc", "std::bad_alloc", "maximum allowed buffer size")
    return is_machine_error(text) and any(word in text for word in words)


def explain(error: BaseException | str) -> MachineError | None:
    """Return the error with advice for an error or an error output of MLX, or None if it is not about the machine."""
    text = str(error)
    if not is_machine_error(text):
        return None
    for word, cause, advice in CAUSES:
        if word in text:
            return MachineError(f"{cause[0].upper()}{cause[1:]}.", advice)
    return MachineError(text.strip().splitlines()[-1][:300], AGAIN)
