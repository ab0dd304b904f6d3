"""Memory and GPU errors of MLX get advice. Other errors are not changed."""

from __future__ import annotations

import pytest

from mlx_distill.gpu_errors import explain

BUFFER = "[METAL] Command buffer execution failed: "
OUT_OF_MEMORY = f"{BUFFER}Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"


@pytest.mark.parametrize(
    ("text", "cause", "advice"),
    [
        (OUT_OF_MEMORY, "ran out of memory", "Close other programs"),
        (
            f"{BUFFER}Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)",
            "display needed the GPU",
            "Let the display sleep",
        ),
        (f"{BUFFER}Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)", "too long", "again"),
        (f"{BUFFER}Internal Error (0000000e:kIOGPUCommandBufferCallbackErrorInnocentVictim)", "another program", ""),
        (f"{BUFFER}Ignored (00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)", "earlier errors", "restart"),
        (f"{BUFFER}Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)", "stopped responding", ""),
        (
            "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed buffer size of 8",
            "larger than the GPU allows",
            "smaller",
        ),
        ("[malloc] Unable to allocate 12 bytes.", "not enough memory", "Close other programs"),
        ("[malloc_or_wait] Unable to allocate 12 bytes.", "not enough memory", "Close other programs"),
        ("[metal::malloc] Resource limit (499000) exceeded.", "too many buffers", ""),
        (
            "[metal::load_device] No Metal device available. This may occur in headless environments",
            "Metal is not available",
            "logged in",
        ),
        ("[METAL] Something new (99)", "Something new", ""),
    ],
)
def test_machine_error_gets_advice(text: str, cause: str, advice: str) -> None:
    for form in (RuntimeError(text), f"Traceback (most recent call last):\n  ...\nRuntimeError: {text}\n"):
        for training in (False, True):
            error = explain(form, training=training)
            assert error and cause in error.message and advice in error.next_step


def test_only_training_is_told_to_make_micro_batches_smaller() -> None:
    training, other = explain(OUT_OF_MEMORY, training=True), explain(OUT_OF_MEMORY)
    assert training and "--resume" in training.next_step and "--micro-batch-tokens 512" in training.next_step
    assert other and "micro" not in other.next_step and "smaller or a quantised student" in other.next_step


def test_other_errors_pass() -> None:
    assert explain(RuntimeError("[matmul] shapes (2,3) and (4,5) do not match")) is None
    assert explain("a file called OutOfMemory.txt is missing") is None
    assert explain("") is None
