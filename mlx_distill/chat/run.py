"""The stage `chat`: load the student once, then talk on the terminal or answer one piped prompt."""

from __future__ import annotations

import sys
import threading

from mlx_distill.chat import terminal
from mlx_distill.chat.config import ChatConfig, ChatResult
from mlx_distill.chat.conversation import Conversation
from mlx_distill.chat.repl import Repl, cut_off_note, write_answer
from mlx_distill.errors import InputError
from mlx_distill.events import Note, Report, ignore
from mlx_distill.models.adapter import open_student
from mlx_distill.models.chat_model import ChatModel


def run(config: ChatConfig, report: Report = ignore, *, ab: bool = False) -> ChatResult:
    """Chat on this terminal until the user leaves. Without a terminal, answer the prompt on standard input.

    With `ab`, base and distilled both answer. Raises the errors of loading, and InputError for a prompt that is empty
    or does not fit, or for `ab` without an adapter.
    """
    if ab and not config.adapter:
        raise InputError(
            "--ab compares base and distilled, and there is no adapter.", "Give one with --adapter, or omit --ab."
        )
    interactive = terminal.is_interactive()
    prompt = "" if interactive else terminal.read_pipe()
    student, adapter = open_student(config.model, config.adapter, report if interactive else ignore)
    conversation = Conversation(
        ChatModel(student, adapter, config.context_tokens),
        system=config.system,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # the chat goes on if the terminal cannot show a character
    if not interactive:
        return _answer_once(conversation, prompt, ab=ab)
    report(Note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."))
    read = terminal.line_reader()
    return Repl(conversation, read, terminal.write, terminal.say, ab=ab, hold_keys=terminal.hold_keys).run()


def _answer_once(conversation: Conversation, prompt: str, *, ab: bool) -> ChatResult:
    """Write only the answer and a line end to standard output. With `ab`, write both answers under their names."""
    n_tokens = 0
    for heading, base in [("base:\n", True), ("\ndistilled:\n", False)] if ab else [("", False)]:
        pieces = conversation.ask(prompt, base=base)
        terminal.write(heading)
        if not write_answer(pieces, terminal.write, threading.Event()):
            terminal.write("\n")
        turn = conversation.turn
        n_tokens += turn.n_tokens if turn else 0
        if turn and turn.finish_reason == "length":
            terminal.say(cut_off_note(turn, conversation.max_tokens))
    return ChatResult(2 if ab else 1, n_tokens)
