"""The conversation: history, token budget, prefix cache, base and distilled, saving."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_distill.chat.conversation import Conversation, Turn
from mlx_distill.errors import InputError
from mlx_distill.models.chat_model import ChatModel
from mlx_distill.models.load import Student
from mlx_distill.models.prefix_cache import PrefixCache
from mlx_distill.models.tokenize import render_prompt
from mlx_distill.sanitize import printable
from tests.unit.chat.conftest import converse, say


def roles(conversation: Conversation) -> str:
    return "".join(message.role[0] for message in conversation.messages)


def turn_of(conversation: Conversation) -> Turn:
    assert conversation.turn is not None
    return conversation.turn


def n_prompt_tokens(conversation: Conversation) -> int:
    """Count the tokens of the last prompt."""
    return len(conversation.model.render(conversation.messages[:-1]))


def fresh_answer(student: Student, conversation: Conversation, max_tokens: int) -> str:
    """Answer the last question again with an empty cache."""
    prompt = render_prompt(student.tokenizer, conversation.messages[:-1])
    return "".join(piece.text for piece in PrefixCache(student).stream(prompt, max_tokens=max_tokens))


def test_the_prefix_cache_changes_no_answer(student: Student) -> None:
    conversation = converse(student, system="Be brief.", max_tokens=12)
    for number in range(4):
        answer = say(conversation, f"Question {number}, please.")
        assert roles(conversation) == "s" + "ua" * (number + 1)
        assert conversation.messages[-1].content == answer
        assert not number or conversation.model.n_reused > 0.5 * n_prompt_tokens(conversation)
        assert answer == fresh_answer(student, conversation, 12)


def test_a_stopped_answer_leaves_a_valid_cache(student: Student) -> None:
    conversation = converse(student, max_tokens=30)
    pieces = conversation.ask("Write a Python function.")
    for _ in range(5):
        next(pieces)
    pieces.close()
    assert turn_of(conversation).finish_reason == "stopped"
    assert roles(conversation) == "ua"
    answer = say(conversation, "Go on.")
    assert conversation.model.n_reused > 0
    assert answer == fresh_answer(student, conversation, 30)


def test_an_interrupt_inside_a_step_empties_the_cache(student: Student) -> None:
    cache, prompt = PrefixCache(student), student.tokenizer.encode("Write a Python function.")
    pieces = cache.stream(prompt, max_tokens=30)
    next(pieces)
    with pytest.raises(KeyboardInterrupt):
        pieces.throw(KeyboardInterrupt())
    again = [piece.text for piece in cache.stream(prompt, max_tokens=30)]
    assert cache.n_reused == 0
    assert again == [piece.text for piece in PrefixCache(student).stream(prompt, max_tokens=30)]


def test_a_full_context_drops_the_oldest_turns(student: Student) -> None:
    conversation = converse(student, context_tokens=200, system="Be brief.", max_tokens=16)
    n_dropped = 0
    for number in range(8):
        say(conversation, f"Question {number}, please.")
        assert n_prompt_tokens(conversation) + 16 <= 200
        n_dropped += turn_of(conversation).n_dropped
        assert roles(conversation) == "s" + "ua" * (number + 1 - n_dropped)
    assert 0 < n_dropped < 8


def test_a_message_that_does_not_fit_changes_nothing(student: Student) -> None:
    conversation = converse(student, context_tokens=120, max_tokens=16)
    say(conversation, "Hello")
    before = conversation.messages
    with pytest.raises(InputError, match="tokens long"):
        conversation.ask("word " * 300)
    assert conversation.messages == before and conversation.turn is None
    assert say(conversation, "Hello again")


def test_a_long_message_gets_a_shorter_answer(student: Student) -> None:
    conversation = converse(student, context_tokens=120, max_tokens=100)
    say(conversation, "Write a function. " * 8)
    turn = turn_of(conversation)
    assert turn.finish_reason == "length"
    assert n_prompt_tokens(conversation) + turn.n_tokens == 120


def test_a_context_above_the_models_maximum_is_refused(student: Student) -> None:
    with pytest.raises(InputError, match=r"maximum of .* is 2048"):
        ChatModel(student, context_tokens=4096)
    assert ChatModel(student).context_tokens == 2048


def test_base_and_distilled_share_one_copy_of_the_weights(student: Student, adapted: ChatModel) -> None:
    both = converse(adapted, system="Be brief.", max_tokens=12)
    for number in range(3):
        question, before = f"Question {number}, please.", both.messages
        by_base = say(both, question, base=True)
        assert both.messages == before
        n_reused_by_base = adapted.n_reused
        by_distilled = say(both, question)
        assert not number or n_reused_by_base > 0.3 * n_prompt_tokens(both), "the base has its own cache"
        assert by_distilled == fresh_answer(adapted.student, both, 12) != by_base
        assert by_base == fresh_answer(student, both, 12), "equal to the base without any adapter"
    assert adapted.adapter is not None and adapted.adapter.enabled


def test_retry_at_a_temperature_gives_another_answer(adapted: ChatModel) -> None:
    conversation = converse(adapted, max_tokens=16, temperature=1.0, seed=3)
    first = say(conversation, "Hello")
    assert conversation.remove_last_turn() == "Hello"
    assert say(conversation, "Hello") != first
    assert say(conversation, "And?", base=True) == say(conversation, "And?", base=True), "the base uses no seed"


def test_a_conversation_is_saved_and_replaces_no_file(student: Student, tmp_path: Path) -> None:
    conversation = converse(student, system="Be brief.", max_tokens=6)
    markdown, data = tmp_path / "chat.md", tmp_path / "new" / "chat.json"
    with pytest.raises(InputError, match="no answer to save"):
        conversation.save(markdown)
    answer = say(conversation, "Hello 你好 🙂")
    assert conversation.save(markdown) == markdown and conversation.save(data) == data
    text = markdown.read_text(encoding="utf-8")
    assert text.startswith("## System\n\nBe brief.\n\n## You\n\nHello 你好 🙂\n\n## Student\n\n")
    assert printable(answer).strip() in text
    saved = json.loads(data.read_text(encoding="utf-8"))
    assert saved == {"messages": [message.to_json() for message in conversation.messages]}
    with pytest.raises(InputError, match="already exists"):
        conversation.save(markdown)
    assert markdown.read_text(encoding="utf-8") == text
