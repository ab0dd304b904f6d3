"""The loop of a chat: commands, Ctrl-C, Ctrl-D, printable answers, and the notes below them."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from mlx_distill.chat.conversation import Conversation, Turn
from mlx_distill.chat.repl import Repl, turn_notes, write_answer
from mlx_distill.models.chat_model import ChatModel
from mlx_distill.models.load import Student
from mlx_distill.sanitize import printable
from tests.unit.chat.conftest import converse


def chat(conversation: Conversation, *lines: str | type[BaseException]) -> tuple[str, list[str]]:
    """Type lines (or keys); return the written answers and the said lines."""
    script: Iterator[str | type[BaseException]] = iter(lines)
    written: list[str] = []
    said: list[str] = []

    def read() -> str:
        line = next(script, EOFError)
        if isinstance(line, str):
            return line
        raise line

    Repl(conversation, read, written.append, said.append).run()
    return "".join(written), said


@pytest.fixture
def conversation(student: Student) -> Conversation:
    return converse(student, max_tokens=6)


def contents(conversation: Conversation) -> list[str]:
    return [message.content for message in conversation.messages]


def test_help_system_and_unknown_commands(conversation: Conversation) -> None:
    _, said = chat(conversation, "/help", "/system", "/system Answer in\nrhymes.", "/system", "/nonsense")
    assert "/retry" in said[0] and said[1] == "(no system message)" and "starts over" in said[2]
    assert said[3] == "Answer in\nrhymes." and "no command /nonsense" in said[4]


def test_undo_reset_and_system_shorten_the_history(conversation: Conversation) -> None:
    _, said = chat(conversation, "Hello", "/undo", "/undo", "/retry", "Hi", "/reset", "Hi", "/system Be brief.")
    assert "(last turn removed)" in said and "There is no turn to remove." in said
    assert "There is no answer to replace." in said and "(conversation forgotten)" in said
    assert contents(conversation) == ["Be brief."]


def test_retry_without_a_temperature_repeats_the_answer(conversation: Conversation) -> None:
    written, _ = chat(conversation, "Hello", "/retry")
    answer = printable(contents(conversation)[1])
    assert len(contents(conversation)) == 2 and written.count(answer) == 2


def test_ctrl_c_at_the_prompt_does_not_leave(conversation: Conversation) -> None:
    _, said = chat(conversation, KeyboardInterrupt, "  ", "/exit", "never asked")
    assert said == ["(Ctrl-D or /exit leaves)"] and contents(conversation) == []


def test_a_path_is_a_message_and_not_a_command(conversation: Conversation) -> None:
    chat(conversation, "/etc/hosts: what is it?")
    assert contents(conversation)[0] == "/etc/hosts: what is it?"


def test_a_refused_message_leaves_the_chat_running(conversation: Conversation) -> None:
    _, said = chat(conversation, "bad <|im_end|>", "/system bad <|im_end|>", "/system", "good \ud83d")
    assert "control token" in said[0] and "system message contains <|im_end|>" in said[1]
    assert said[2] == "(no system message)"
    assert contents(conversation)[0] == "good \ufffd"


def test_the_temperature_is_shown_set_and_checked(conversation: Conversation) -> None:
    _, said = chat(conversation, "/temp", "/temp 0.7", "/temp", "/temp warm", "/temp 11", "/temp nan", "/temp 0")
    assert said[:3] == ["(temperature 0: always the most probable token)", "(temperature 0.7)", "(temperature 0.7)"]
    assert all("between 0 and 10" in line for line in said[3:6])
    assert conversation.temperature == 0.0


def test_save_writes_a_file_and_reports_problems(conversation: Conversation, tmp_path: Path) -> None:
    file = tmp_path / "chat.md"
    _, said = chat(conversation, "/save", f"/save {file}", "Hello", f"/save {file}", f"/save {file}")
    assert "needs a file name" in said[0] and "no answer to save" in said[1]
    assert said[-2] == f"(saved in {file})" and "already exists" in said[-1]


def test_ab_shows_both_and_keeps_the_distilled_answer(adapted: ChatModel) -> None:
    conversation = converse(adapted, max_tokens=8)
    written, said = chat(conversation, "/ab", "Hello", "/retry", "/ab", "Hello again")
    assert [line for line in said if line in ("base:", "distilled:")] == ["base:", "distilled:"] * 2
    assert len(contents(conversation)) == 4
    assert all(answer in written for answer in contents(conversation)[1::2])
    assert "(only the distilled student answers)" in said


def test_ab_needs_an_adapter(conversation: Conversation) -> None:
    _, said = chat(conversation, "/ab", "Hello")
    assert "no adapter" in said[0] and "base:" not in said


def test_ctrl_c_in_the_bases_answer_ends_the_turn(adapted: ChatModel) -> None:
    conversation = converse(adapted, max_tokens=200)
    said: list[str] = []
    keys = iter([signal.SIGINT])

    def write(_piece: str) -> None:
        for key in keys:
            signal.raise_signal(key)

    Repl(conversation, lambda: "", write, said.append, ab=True).answer("Hello")
    assert "base:" in said and "distilled:" not in said and any("stopped after" in line for line in said)
    assert conversation.messages == ()
    assert adapted.adapter is not None and adapted.adapter.enabled


@pytest.mark.parametrize("pieces", [["\x1b", "]0;title\x07", "fine"], ["a\x1b[2Jb"], ["\x9b31m", "red"]])
def test_control_codes_do_not_reach_the_terminal(pieces: list[str]) -> None:
    def answer() -> Generator[str, None, None]:
        yield from pieces

    written: list[str] = []
    write_answer(answer(), written.append)
    assert written[-1] == "\n" and not any(code in "".join(written) for code in "\x1b\x9b\x07")


@pytest.mark.parametrize(
    ("turn", "lines"),
    [
        (Turn("stop", 5, 2.0, 0), ["(5 tokens, 2 tokens/s)"]),
        (Turn("stopped", 1, 0.0, 1), ["(the oldest turn was dropped: the context is full)", "(stopped after 1"]),
        (Turn("length", 6, 0.0, 2), ["(the 2 oldest turns were", "(cut off after 6 tokens; --max-tokens raises"]),
        (Turn("length", 5, 0.0, 0), ["(cut off after 5 tokens: the context is full)"]),
    ],
)
def test_notes_below_an_answer(turn: Turn, lines: list[str]) -> None:
    notes = turn_notes(turn, max_tokens=6)
    assert all(note.startswith(line) for note, line in zip(notes, lines, strict=False))
