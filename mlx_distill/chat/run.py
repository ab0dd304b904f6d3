"""The stage `chat`: load the student, then talk on the terminal or answer one piped prompt."""

from __future__ import annotations

import sys

from mlx_lm.generate import wired_limit

from mlx_distill.chat import terminal
from mlx_distill.chat.conversation import Conversation
from mlx_distill.chat.repl import Repl, cut_off_note, write_answer
from mlx_distill.errors import InputError
from mlx_distill.events import Note, Report, ignore
from mlx_distill.models.adapter import open_student
from mlx_distill.models.chat_model import ChatModel
from mlx_distill.models.config import ChatConfig


def run(config: ChatConfig, report: Report = ignore, *, ab: bool = False) -> None:
    """Chat on this terminal until the user leaves. Without a terminal, answer the prompt on standard input.

    With `ab`, base and distilled both answer. Raises InputError for `ab` without an adapter and for a prompt that is
    empty or does not fit, and the errors of loading a model.
    """
    if ab and not config.adapter:
        raise InputError(
            "--ab compares base and distilled, but there is no adapter.", "Give one with --adapter, or omit --ab."
        )
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    prompt = "" if interactive else terminal.read_pipe()
    student, adapter = open_student(config.model, config.adapter, report if interactive else ignore)
    conversation = Conversation(ChatModel(student, adapter, config.context_tokens), config)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a character that the terminal cannot show must not end the chat
    with wired_limit(student.model):  # Metal: the model stays in memory between answers
        if not interactive:
            _answer_once(conversation, prompt, ab=ab)
            return
        report(Note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."))
        read = terminal.line_reader()
        Repl(conversation, read, terminal.write, terminal.say, ab=ab, hide_typing=terminal.hide_typing).run()


def _answer_once(conversation: Conversation, prompt: str, *, ab: bool) -> None:
    """Write the answer to standard output; with `ab`, write both answers and their names."""
    for heading, base in [("base:\n", True), ("\ndistilled:\n", False)] if ab else [("", False)]:
        pieces = conversation.ask(prompt, base=base)
        terminal.write(heading)
        write_answer(pieces, terminal.write)
        turn = conversation.turn
        if turn and turn.finish_reason == "length":
            terminal.say(cut_off_note(turn, conversation.max_tokens))
