"""What the Messages API is asked with and what the journal keeps of its messages: the same live and in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlx_distill.records import Answer, Request, Usage
from mlx_distill.teachers.client import count, word

if TYPE_CHECKING:
    from anthropic.types import Message


def parameters(model: str, request: Request) -> dict[str, Any]:
    """The parameters of a request, as JSON data."""
    system = "\n\n".join(message.content for message in request.messages if message.role == "system")
    asked: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens,
        "messages": [message.to_json() for message in request.messages if message.role != "system"],
    }
    return {**asked, "system": system} if system else asked


def answer_of(message: Message, seconds: float = 0.0) -> Answer:
    """The answer that a message is; AttributeError or TypeError where its parts are not what they should be."""
    return Answer(
        text="".join(block.text for block in message.content if block.type == "text"),
        stop_reason=word(message.stop_reason) or "unknown",
        model=word(message.model),
        usage=_usage(message),
        seconds=seconds,
        detail=_why(message),
    )


def _usage(message: Message) -> Usage:
    used: Any = message.usage
    if used is None:  # a gateway may leave out what the SDK's types promise
        return Usage()
    details = used.output_tokens_details
    return Usage(
        input_tokens=count(used.input_tokens),
        output_tokens=count(used.output_tokens),
        cache_creation_tokens=count(used.cache_creation_input_tokens),
        cache_read_tokens=count(used.cache_read_input_tokens),
        thinking_tokens=count(details.thinking_tokens) if details else 0,
    )


def _why(message: Message) -> str:
    """What the provider or the message itself says about why there is no whole answer."""
    details = message.stop_details
    if details:
        return ": ".join(filter(None, [details.category, details.explanation]))
    if any(block.type == "text" and block.text.strip() for block in message.content):
        return ""
    return "thinking only" if any("thinking" in block.type for block in message.content) else "empty"
