"""Opening a chat or a server: load the student once, put the adapter on, hand over."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from mlx_distill import device
from mlx_distill.chat.config import ChatConfig, ChatResult
from mlx_distill.errors import InputError
from mlx_distill.events import Note, Report, ignore

if TYPE_CHECKING:
    from mlx_distill.models.conversation import Conversation


def run(config: ChatConfig, report: Report = ignore, *, ab: bool = False) -> ChatResult:
    """Talk on this terminal until the user leaves; without a terminal, answer the one prompt on standard input.

    With `ab`, base and distilled both answer. Raises what loading raises, and InputError for a prompt that is empty or
    does not fit, or for `ab` without an adapter.
    """
    if ab and not config.adapter:
        raise InputError(
            "--ab compares base and distilled, and there is no adapter.", "Name it with --adapter, or leave --ab out."
        )
    from mlx_distill.chat import terminal

    interactive = terminal.is_interactive()
    prompt = "" if interactive else terminal.read_pipe()
    device.prepare()
    from mlx_distill.models.adapter import open_student

    student, adapter = open_student(config.model, config.adapter, report if interactive else ignore)
    from mlx_distill.chat.repl import Session
    from mlx_distill.models.conversation import Conversation

    conversation = Conversation(
        student,
        adapter,
        system=config.system,
        max_tokens=config.max_tokens,
        context_tokens=config.context_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character must not end the chat
    if not interactive:
        return _answer_once(conversation, prompt, ab=ab)
    report(Note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."))
    reader, colors = terminal.line_reader(), terminal.shows_colors()
    session = Session(
        conversation, reader, terminal.write, terminal.say, ab=ab, colors=colors, held_keys=terminal.held_keys
    )
    return session.run()


def _answer_once(conversation: Conversation, prompt: str, *, ab: bool) -> ChatResult:
    """The answer alone on standard output, one line end at its end; with `ab` both answers, under their names."""
    from mlx_distill.chat.repl import write_pieces
    from mlx_distill.chat.terminal import say, write

    answers = [("base:\n", conversation.ask_base), ("\ndistilled:\n", conversation.ask)]
    n_tokens = 0
    for name, ask in answers if ab else [("", conversation.ask)]:
        pieces = ask(prompt)
        write(name)
        if not write_pieces(pieces, write, threading.Event()):
            write("\n")
        turn = conversation.turn
        n_tokens += turn.n_tokens if turn else 0
        if turn and turn.finish_reason == "length":
            say(f"(cut off after {turn.n_tokens} tokens; --max-tokens raises the limit)")
    return ChatResult(2 if ab else 1, n_tokens)
