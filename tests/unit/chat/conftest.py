"""Tiny students for the chat: one without an adapter, one with an adapter that changes its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_distill.chat.conversation import Conversation
from mlx_distill.models.adapter import load_adapter
from mlx_distill.models.chat_model import ChatModel
from mlx_distill.models.config import ChatConfig
from mlx_distill.models.load import Student, load_student
from tests.support.adapters import make_adapter
from tests.support.tiny import make_tiny_qwen2


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return load_student(make_tiny_qwen2(tmp_path_factory.mktemp("chat") / "tiny", dtype="float32"))


@pytest.fixture
def adapted(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    folder = tmp_path_factory.mktemp("adapted")
    base = make_tiny_qwen2(folder / "base", dtype="float32")
    student = load_student(base)
    return ChatModel(student, load_adapter(student, make_adapter(base, folder / "adapter")))


def converse(model: Student | ChatModel, *, context_tokens: int = 0, **settings: Any) -> Conversation:
    """Start a conversation with a model."""
    chat_model = model if isinstance(model, ChatModel) else ChatModel(model, context_tokens=context_tokens)
    return Conversation(chat_model, ChatConfig(Path("model"), **settings))


def say(conversation: Conversation, text: str, *, base: bool = False) -> str:
    """Return the whole answer to `text`."""
    return "".join(conversation.ask(text, base=base))
