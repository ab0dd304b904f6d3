"""The one way messages become tokens: for training, scoring, comparing and chatting alike.

A conversation is tokenised turn by turn, so that the tokens before an answer are exactly those the model is given
when it is asked to write that answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_distill.errors import InputError
from mlx_distill.records import Messages

_OTHER_MODEL = "Use an instruct model whose chat template writes turns one after another (Qwen2.5, SmolLM2, Llama)."


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model reads it."""

    tokens: tuple[int, ...]
    mask: tuple[bool, ...]
    """True where a token is supervised: every assistant turn's answer and its end token, and nothing else."""

    @property
    def n_supervised(self) -> int:
        return sum(self.mask)


def render(tokenizer: TokenizerWrapper, messages: Messages) -> Rendered:
    """Tokens and answer mask of a conversation; the template's text after the last end token is left out.

    Raises InputError where the template fails, rewrites earlier turns, or writes no end token.
    """
    tokens: list[int] = []
    mask: list[bool] = []
    for text, supervised in _pieces(tokenizer, messages):
        ids = tokenizer.encode(text, add_special_tokens=False)
        tokens.extend(ids)
        mask.extend([supervised] * len(ids))
    return Rendered(tuple(tokens), tuple(mask))


def render_prompt(tokenizer: TokenizerWrapper, messages: Messages) -> list[int]:
    """The tokens after which the model writes the next assistant turn."""
    whole = _text(tokenizer, messages, ask=True)
    texts = _find_answers(tokenizer, messages, whole)
    if texts is None:
        texts = [text for text, _ in _pieces(tokenizer, messages)]
    rest = whole[sum(map(len, texts)) :]
    return [token for text in (*texts, rest) for token in tokenizer.encode(text, add_special_tokens=False)]


def end_tokens(tokenizer: TokenizerWrapper) -> list[str]:
    """The texts of the tokens that end a turn, such as `<|im_end|>`."""
    texts = tokenizer.convert_ids_to_tokens(sorted(tokenizer.eos_token_ids))
    return [text for text in texts if text]


def control_tokens(tokenizer: TokenizerWrapper) -> list[str]:
    """The texts that the tokenizer reads as control tokens wherever they stand; they cannot be part of an answer."""
    added = tokenizer.added_tokens_decoder.values()
    return sorted({str(token) for token in added if token.special})


def _pieces(tokenizer: TokenizerWrapper, messages: Messages) -> list[tuple[str, bool]]:
    """The text up to the last answer's end token, cut into (what is given, False) and (what is answered, True)."""
    pieces: list[tuple[str, bool]] = []
    done = ""
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = _text(tokenizer, messages[:index], ask=True)
        after = _text(tokenizer, messages[: index + 1], ask=False)
        if not before.startswith(done) or not after.startswith(before):
            raise InputError("The chat template writes earlier turns differently once an answer follows.", _OTHER_MODEL)
        turn = after[len(before) :]
        answer = turn[: _end_of_answer(tokenizer, turn)]
        pieces += [(before[len(done) :], False), (answer, True)]
        done = before + answer
    return pieces


def _find_answers(tokenizer: TokenizerWrapper, messages: Messages, whole: str) -> list[str] | None:
    """Split `whole` like `_pieces`, in time linear in the number of turns: each answer follows a generation prompt.

    Returns None if this cannot be told from the text alone.
    """
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        return []
    before = messages[: answers[0]]
    opening = _text(tokenizer, before, ask=True).removeprefix(_text(tokenizer, before, ask=False))
    ends = end_tokens(tokenizer)
    parts = whole.split(opening) if opening else []
    controls_in_content = any(token in message.content for message in messages for token in (opening, *ends))
    unchanged = whole.startswith(_text(tokenizer, messages[: answers[-1] + 1], ask=False))
    if controls_in_content or not unchanged or len(parts) != len(answers) + 2:
        return None
    texts = [parts[0] + opening]
    for part in parts[1 : len(answers) + 1]:
        found = [part.index(end) + len(end) for end in ends if end in part]
        if not found:
            return None
        texts += [part[: min(found)], part[min(found) :] + opening]
    return texts[:-1]


def _text(tokenizer: TokenizerWrapper, messages: Messages, *, ask: bool) -> str:
    turns = [message.to_json() for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
    except Exception as error:  # a template is a program of the model's author and may raise anything
        raise InputError(f"The chat template cannot write this conversation: {error}", _OTHER_MODEL) from error
    return text


def _end_of_answer(tokenizer: TokenizerWrapper, turn: str) -> int:
    """Where the answer ends within an assistant turn, its end token included."""
    ends = [turn.rfind(text) + len(text) for text in end_tokens(tokenizer) if text in turn]
    if not ends:
        raise InputError("The chat template writes no end token after an answer.", _OTHER_MODEL)
    return max(ends)
