"""The chat with a student on the terminal."""

from mlx_distill.chat.config import ChatConfig, ChatResult

__all__ = ["ChatConfig", "ChatResult"]
