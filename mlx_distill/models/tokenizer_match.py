"""Check that a teacher's probabilities can teach a student: both must read and write the same tokens.

The check needs tokenizer files only, so that a wrong pair is refused before any weights are loaded. The heads may have
different widths: models of one family pad theirs to different multiples. Both are cut to the shared ids.
"""

from __future__ import annotations

import json
from itertools import zip_longest
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_distill.errors import InputError
from mlx_distill.models.tokenize import render
from mlx_distill.records import Message, content_hash

PROBE = (
    Message("system", "You are a helpful assistant."),
    Message("user", "Don't  guess: what is 12345 + 678 in caf\u00e9 \u4f60\u597d, e\u0301 \U0001f642?"),
    Message("assistant", "def add(a, b):\n    return a + b  # 13,023\n\n\tDONE\r\nnaïve"),
    Message("user", "Why?\n"),
    Message("assistant", "Because <b>it's</b> {so}."),
)
"""A conversation whose tokens show differences in templates, in splitting and in normalisation."""
_OTHER_TEACHER = "Choose a teacher of the student's own family, or train on its text alone, with objective sft."


def check_same_tokenizer(teacher: TokenizerWrapper, student: TokenizerWrapper) -> None:
    """Raise InputError with the first difference that changes what a token is.

    Compared: entries, added tokens (such as control tokens), merges, the token that ends an answer, and the tokens of
    one conversation. Entries for padding do not count.
    """
    _check_entries(teacher, student)
    _check_added_tokens(teacher, student)
    _check_merges(teacher, student)
    _check_end_token(teacher, student)
    _check_rendering(teacher, student)


def shared_vocabulary(tokenizer: TokenizerWrapper, *head_widths: int) -> int:
    """Return the number of ids to which heads are cut: the tokenizer's own, or less if a head is narrower."""
    return min([1 + max(_entries(tokenizer)), *head_widths])


def tokenizer_digest(tokenizer: TokenizerWrapper) -> str:
    """Return a hash of what `check_same_tokenizer` compares, without the chat template."""
    added = sorted(_added_tokens(tokenizer).items())
    return content_hash([sorted(_entries(tokenizer).items()), added, _merges(tokenizer)])


def template_digest(tokenizer: TokenizerWrapper) -> str:
    """Return a hash of the chat template."""
    return content_hash(tokenizer.chat_template)


def _entries(tokenizer: TokenizerWrapper) -> dict[int, str]:
    """Return the entries by id, without the padding that GGUF files name `[PAD151665]`."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return {number: text for text, number in vocabulary.items() if text != f"[PAD{number}]"}


def _added_tokens(tokenizer: TokenizerWrapper) -> dict[int, str]:
    """Return the tokens that are found in a text before it is split. Files disagree about which of them are special."""
    added = tokenizer.added_tokens_decoder.items()
    return {int(number): str(token) for number, token in added if str(token) != f"[PAD{number}]"}


def _merges(tokenizer: TokenizerWrapper) -> list[Any]:
    """Return the merges of a BPE tokenizer in their order; none for other kinds."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend else {}
    return list(model.get("merges") or ())


def _check_entries(teacher: TokenizerWrapper, student: TokenizerWrapper) -> None:
    theirs, ours = _entries(teacher), _entries(student)
    if theirs == ours:
        return
    number = min(n for n in {*theirs, *ours} if theirs.get(n) != ours.get(n))
    texts = _shown(theirs.get(number)), _shown(ours.get(number))
    raise _differ(f"token {number} is {texts[0]} for the teacher, {texts[1]} for the student")


def _check_added_tokens(teacher: TokenizerWrapper, student: TokenizerWrapper) -> None:
    theirs, ours = _added_tokens(teacher), _added_tokens(student)
    if theirs == ours:
        return
    number = min(n for n in {*theirs, *ours} if theirs.get(n) != ours.get(n))
    whose, other = ("teacher", "student") if number in theirs else ("student", "teacher")
    text = theirs.get(number, ours.get(number))
    raise _differ(f"{_shown(text)} ({number}) is one token in any text for the {whose}, not for the {other}")


def _check_merges(teacher: TokenizerWrapper, student: TokenizerWrapper) -> None:
    for number, (theirs, ours) in enumerate(zip_longest(_merges(teacher), _merges(student))):
        if theirs != ours:
            raise _differ(f"merge {number} is {_shown(theirs)} for the teacher, {_shown(ours)} for the student")


def _check_end_token(teacher: TokenizerWrapper, student: TokenizerWrapper) -> None:
    chat = render(student, PROBE)
    end = chat.tokens[-1]
    if end not in teacher.eos_token_ids:
        theirs = ", ".join(map(_shown, teacher.convert_ids_to_tokens(sorted(teacher.eos_token_ids))))
        text = student.convert_ids_to_tokens([end])[0]
        raise _differ(f"the student ends an answer with {_shown(text)} ({end}), the teacher with {theirs}")


def _check_rendering(teacher: TokenizerWrapper, student: TokenizerWrapper) -> None:
    theirs, ours = render(teacher, PROBE), render(student, PROBE)
    if theirs == ours:
        return
    pairs = zip_longest(theirs.tokens, ours.tokens)
    place = next((n for n, (one, other) in enumerate(pairs) if one != other), len(ours.tokens))
    texts = [
        repr(tokenizer.decode(list(chat.tokens[place : place + 8])))
        for tokenizer, chat in ((teacher, theirs), (student, ours))
    ]
    raise _differ(f"at token {place} of a trial conversation the teacher reads {texts[0]}, {texts[1]} for the student")


def _shown(text: object) -> str:
    return "missing" if text is None else repr(text)[:80]


def _differ(difference: str) -> InputError:
    return InputError(f"Teacher and student have different tokenizers: {difference}.", _OTHER_TEACHER)
