"""Opening a chat or a server: load the student once, put the adapter on, hand over."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from mlx_distill import machine
from mlx_distill.chat.config import ChatConfig, ChatResult, ServeConfig
from mlx_distill.errors import InputError
from mlx_distill.events import Note, Report, ignore

if TYPE_CHECKING:
    from mlx_distill.chat.conversation import Conversation
    from mlx_distill.students.adapter import Adapter
    from mlx_distill.students.loading import Student


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
    student, adapter = _open(config, report if interactive else ignore)
    from mlx_distill.chat.conversation import Conversation
    from mlx_distill.chat.session import Session

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


def serve(config: ServeConfig, report: Report = ignore) -> None:
    """Answer requests on 127.0.0.1 until Ctrl-C. Raises MachineError, before it loads, where the port is taken."""
    from mlx_distill.chat.http import Listener

    with Listener(config.port) as listener:
        student, adapter = _open(config, report)
        from mlx_distill.chat.server import Server

        Server(student, adapter, config, listener).serve(report)


def _open(config: ChatConfig, report: Report) -> tuple[Student, Adapter | None]:
    report(Note(f"Loading {config.model} ..."))
    machine.prepare()
    from mlx_distill.students.adapter import attach, read_adapter_config
    from mlx_distill.students.loading import load_student

    if config.adapter:
        read_adapter_config(config.adapter)  # what is missing is said before the model is loaded
    student = load_student(config.model)
    adapter = attach(student, config.adapter) if config.adapter else None
    if adapter:
        report(Note(f"With the adapter {adapter.origin}."))
    return student, adapter


def _answer_once(conversation: Conversation, prompt: str, *, ab: bool) -> ChatResult:
    """The answer alone on standard output, one line end at its end; with `ab` both answers, under their names."""
    from mlx_distill.chat.session import write_pieces
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
