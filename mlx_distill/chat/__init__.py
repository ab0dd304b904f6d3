"""Using a student: the conversation on a terminal and the server for programs, over one copy of the weights."""

from mlx_distill.chat.config import ChatConfig, ChatResult, ServeConfig
from mlx_distill.chat.start import run, serve

__all__ = ["ChatConfig", "ChatResult", "ServeConfig", "run", "serve"]
