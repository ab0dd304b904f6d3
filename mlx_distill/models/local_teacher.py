"""A teacher on this machine that computes the probabilities of given tokens: a larger model, or the student itself.

Its rows differ from the student's only before the first answer, where they hold the teacher's context. The answer
tokens are the student's own: a text is never tokenized twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_distill import device
from mlx_distill.errors import InputError, MachineError, MissingError
from mlx_distill.events import Note, Report, ignore
from mlx_distill.formatting import format_bytes
from mlx_distill.models import hub
from mlx_distill.models.adapter import adapter_off
from mlx_distill.models.config import MLX, SELF, is_local, local_folder
from mlx_distill.models.context import TeacherContext, with_context
from mlx_distill.models.load import Head, Student, load_student, load_tokenizer, read_config, weight_bytes
from mlx_distill.models.safetensors_io import WEIGHTS, read_headers
from mlx_distill.models.score import Batch, batches_by_length, map_chunks, pad, vocabulary_of
from mlx_distill.models.tokenize import TokenizedChat, Tools, check_chat_template, render_prompt
from mlx_distill.models.tokenizer_match import check_same_tokenizer, shared_vocabulary
from mlx_distill.records import STUDENT_SYSTEM, Messages, build_messages, content_hash
from mlx_distill.storage.file_states import file_hash
from mlx_distill.storage.files import MODEL_CONFIG

BATCH_TOKENS = 2048
"""Tokens, padding included, in one forward pass of the teacher (a longer row is alone)."""
MIN_PREFIX_TOKENS = 64
"""A context of this length or more is computed once. With three example dialogues, that is most of the work."""
BOUNDARY_TOKENS = 4
"""The last tokens before the question are not part of the cached context: some questions change them."""
USABLE_FRACTION = 0.8
"""The weights may fill this fraction of the device's memory."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class LocalTeacher:
    """A loaded teacher and its context. Nothing that it computes has a gradient."""

    name: str
    """The user's name for it: `mlx:FOLDER`, `mlx:OWNER/NAME` or `self`."""
    model: Student
    """The loaded model; for `self`, the student. An adapter on it is off while the teacher computes."""
    context: TeacherContext
    vocabulary: int
    """The number of ids that teacher and student share. The rest of a head is padding."""

    @cached_property
    def head(self) -> Head:
        """From hidden states (..., D) to logits (..., vocabulary) in float32: 16 bits would add 1e-4 nats of noise."""
        return exact_head(self.model.head, self.vocabulary)

    def view(self, chat: TokenizedChat, messages: Messages, document: str = "", tools: Tools = ()) -> TokenizedChat:
        """Return a row as the teacher sees it: its context and the prompt, then the student's tokens as they are.

        `chat` holds the student's tokens of `messages`, which may end before the answer (a rollout). Raises InputError
        if it does not begin with the tokens of the prompt.
        """
        return view(self.model.tokenizer, self.context, chat, messages, document, tools)

    def hidden(self, rows: Sequence[TokenizedChat]) -> mx.array:
        """Return the hidden states (N, D) that predict each supervised token of the rows, row after row.

        The rows are as `view` returns them. Computed batch by batch: only the result stays in memory.
        """
        states: dict[int, mx.array] = {}
        for group in batches_by_length([len(row.tokens) for row in rows], BATCH_TOKENS):
            batch = pad([rows[index] for index in group])
            found = self.hidden_of(batch)
            mx.eval(found)
            for index, tokens in zip(group, batch.row_slices, strict=True):
                states[index] = found[tokens]
        return mx.concatenate([states[index] for index in range(len(rows))])

    def hidden_of(self, batch: Batch) -> mx.array:
        """Return the hidden states (N, D) that predict the supervised tokens of a batch."""
        n_prefix, cache = self._cached_prefix(batch)
        with self._without_adapter():
            if not cache:
                return mx.stop_gradient(batch.gather(self.model.hidden(batch.inputs)))
            states = self.model.hidden(batch.inputs[:, n_prefix:], cache)
        length = batch.inputs.shape[1]
        row, column = batch.positions // length, batch.positions % length
        positions = row * (length - n_prefix) + column - n_prefix  # `states` begins after the prefix
        return mx.stop_gradient(states.reshape(-1, states.shape[-1])[positions])

    def top_log_probs(self, batch: Batch, k: int) -> tuple[mx.array, mx.array]:
        """Return the ids (N, k) and log-probabilities (N, k) float32 of the most probable tokens, in falling order."""
        hidden = self.hidden_of(batch)
        k = min(k, self.vocabulary)

        def compute(hidden: mx.array) -> tuple[mx.array, ...]:
            logits = self.head(hidden)
            found = mx.argpartition(-logits, k - 1, axis=-1)[:, :k]
            values = mx.take_along_axis(logits, found, axis=-1)
            order = mx.argsort(-values, axis=-1)
            log_probs = mx.take_along_axis(values, order, axis=-1) - mx.logsumexp(logits, axis=-1, keepdims=True)
            return mx.take_along_axis(found, order, axis=-1), mx.minimum(log_probs, 0.0)

        ids, log_probs = map_chunks(compute, [hidden], vocabulary_of(self.model.head, hidden))
        return ids, log_probs

    def _cached_prefix(self, batch: Batch) -> tuple[int, list[KVCache]]:
        """Return the length of the context that all rows begin with, and its keys and values for each row.

        The list is empty if the rows have no long common context, or if the model keeps something else.
        """
        tokens, layers = self._prefix
        n_rows, length = batch.inputs.shape
        if not layers or length <= len(tokens):
            return 0, []
        if not mx.array_equal(batch.inputs[:, : len(tokens)], mx.broadcast_to(tokens, (n_rows, len(tokens)))):
            return 0, []
        caches = []
        for layer in layers:
            cache = KVCache()
            cache.keys, cache.values = (
                mx.broadcast_to(kept[..., : len(tokens), :], (n_rows, *kept.shape[1:2], len(tokens), kept.shape[3]))
                for kept in (layer.keys, layer.values)
            )
            cache.offset = len(tokens)
            caches.append(cache)
        return len(tokens), caches

    @cached_property
    def _prefix(self) -> tuple[mx.array, list[KVCache]]:
        """The tokens of the context, with which rows begin, and their keys and values, computed once.

        Without a system message in the context, rows begin with their own: the default one is expected.
        """
        questions = [with_context(self.context, build_messages(text, STUDENT_SYSTEM)) for text in ("A", "Why?")]
        one, other = (render_prompt(self.model.tokenizer, question) for question in questions)
        n_equal = next(n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b) - BOUNDARY_TOKENS
        caches: list[Any] = make_prompt_cache(self.model.model)
        if n_equal < MIN_PREFIX_TOKENS or any(type(cache) is not KVCache for cache in caches):
            return mx.array([]), []
        tokens = mx.array(one[:n_equal])
        with self._without_adapter():
            mx.eval(self.model.hidden(tokens[None], caches), [(cache.keys, cache.values) for cache in caches])
        return tokens, caches

    @contextmanager
    def _without_adapter(self) -> Iterator[None]:
        """Compute without the adapter, and without dropout."""
        model = self.model.model
        training = model.training
        with adapter_off(model):
            if training:
                model.eval()
            try:
                yield
            finally:
                if training:
                    model.train()


def exact_head(head: Head, vocabulary: int) -> Head:
    """Return a head that computes its first `vocabulary` logits in float32."""
    return lambda hidden: head(hidden.astype(mx.float32))[..., :vocabulary].astype(mx.float32)


def view(
    tokenizer: TokenizerWrapper,
    context: TeacherContext,
    chat: TokenizedChat,
    messages: Messages,
    document: str = "",
    tools: Tools = (),
) -> TokenizedChat:
    """Return a row as a teacher sees it: see `LocalTeacher.view`. Needs no weights."""
    first = next((n for n, message in enumerate(messages) if message.role == "assistant"), len(messages))
    prompt = messages[:first]
    own = render_prompt(tokenizer, prompt, tools)
    if list(chat.tokens[: len(own)]) != own or any(chat.mask[: len(own)]):
        raise InputError(
            "The tokens before the first answer are not those of the prompt.",
            "Use the same chat template for teacher and student.",
        )
    seen = render_prompt(tokenizer, with_context(context, prompt, document), tools)
    return TokenizedChat((*seen, *chat.tokens[len(own) :]), (*([False] * len(seen)), *chat.mask[len(own) :]))


def teacher_folder(spec: str, student: Path, report: Report = ignore) -> Path:
    """Return the model folder of a local teacher. A model of the Hub is downloaded into the Hub's cache.

    Raises InputError for a teacher of another kind, MissingError if there is no such folder, and what `hub.fetch`
    raises.
    """
    if not is_local(spec):
        raise InputError(
            f"The probabilities of {spec} cannot be computed: it is not a model on this machine.",
            "Name a local teacher: mlx:FOLDER, mlx:OWNER/NAME or self. Or train on its text alone, with objective sft.",
        )
    folder = local_folder(spec, student)
    if folder:
        return folder
    name = spec.removeprefix(MLX).strip()
    if not _HUB_ID.fullmatch(name):
        raise MissingError(
            f"teacher {spec!r}: there is no such folder, and it is not a Hub id (owner/name).",
            "Write mlx:FOLDER with an MLX model folder, or mlx:OWNER/NAME.",
        )
    return hub.fetch(name, report=report)


def open_local_teacher(
    spec: str, student: Student | Path, context: TeacherContext, report: Report = ignore
) -> LocalTeacher:
    """Load a local teacher for a student, given by its folder or loaded.

    `self` with a loaded student shares its weights. Raises InputError for a wrong tokenizer, before any weights are
    read; MachineError if the weights do not fit into memory; and what `teacher_folder` and `load_student` raise.
    """
    path = student if isinstance(student, Path) else student.path
    folder = teacher_folder(spec, path, report)
    check_teacher(folder, path)
    return load_local_teacher(spec, folder, student, context, report)


def load_local_teacher(
    spec: str, folder: Path, student: Student | Path, context: TeacherContext, report: Report = ignore
) -> LocalTeacher:
    """Load a teacher that `check_teacher` has accepted: see `open_local_teacher`."""
    path = student if isinstance(student, Path) else student.path
    if spec == SELF and isinstance(student, Student):
        model = student
    else:
        report(Note(f"Loading the teacher {folder} ..."))
        model = load_student(folder)
    return LocalTeacher(spec, model, context, count_shared_ids(model.tokenizer, folder, path))


def count_shared_ids(tokenizer: TokenizerWrapper, teacher: Path, student: Path) -> int:
    """Return the number of ids to which both heads are cut, from the tokenizer and the config files."""
    widths = [read_config(folder).get("vocab_size") for folder in (teacher, student)]
    return shared_vocabulary(tokenizer, *(width for width in widths if isinstance(width, int) and width > 0))


def weights_digest(folder: Path) -> str:
    """Return a hash of a model folder's weights and config. Reads every byte."""
    paths = [folder / MODEL_CONFIG, *sorted(folder.glob(WEIGHTS))]
    return content_hash([[path.name, file_hash(path)] for path in paths])


def check_teacher(folder: Path, student: Path, usable_bytes: int = 0) -> int:
    """Check a teacher's tokenizer, and that its weights fit into memory. Returns the bytes that they take.

    Only headers of weight files are read. `usable_bytes` defaults to the device's. Raises InputError or MachineError.
    """
    check_tokens(folder, student)
    return check_memory(folder, usable_bytes=usable_bytes)


def check_tokens(folder: Path, student: Path) -> None:
    """Raise InputError if a teacher does not read and write the tokens of the student."""
    if folder.resolve() != student.resolve():
        theirs, ours = load_tokenizer(folder), load_tokenizer(student)
        if theirs.chat_template != ours.chat_template:
            check_chat_template(theirs)  # `convert` checked the student's
        check_same_tokenizer(theirs, ours)


def check_memory(folder: Path, student_bytes: int = 0, usable_bytes: int = 0) -> int:
    """Check that a teacher's weights fit into memory, with a student's that are loaded too. Returns their bytes.

    Only headers of weight files are read. `usable_bytes` defaults to the device's. Raises InputError or MachineError.
    """
    read_headers(folder)  # refuses broken files
    hardware = device.prepare()
    usable_bytes = usable_bytes or hardware.usable_bytes
    needed = weight_bytes(folder, hardware.dtype.size)
    if needed + student_bytes > USABLE_FRACTION * usable_bytes:
        more = f", and {format_bytes(student_bytes)} for the student's" if student_bytes else ""
        raise MachineError(
            f"The teacher {folder} needs {format_bytes(needed)} for its weights{more}. A job on this machine may use "
            f"{format_bytes(usable_bytes)}, of which {1 - USABLE_FRACTION:.0%} stays in reserve.",
            "Choose a smaller teacher, or a 4-bit one: mlx_lm.convert -q --hf-path MODEL --mlx-path FOLDER.",
        )
    return needed


def describe_teacher(
    spec: str, student: Path, *, scores: bool = False, in_memory: bool = False, report: Report = ignore
) -> str:
    """Check a local teacher before any work, and say in one line what it needs. A Hub model is downloaded.

    `scores`: its probabilities are needed, so its tokens must be the student's. `in_memory`: both models are loaded at
    the same time. Raises what `check_teacher` raises. A student that is not converted yet is not looked at.
    """
    folder = teacher_folder(spec, student, report)
    hardware = device.prepare()
    converted = (student / MODEL_CONFIG).is_file()
    is_other_model = converted and spec != SELF
    if scores and converted:
        check_tokens(folder, student)
    else:
        load_tokenizer(folder)
    student_bytes = weight_bytes(student, hardware.dtype.size) if is_other_model else 0
    needed = check_memory(folder, student_bytes if in_memory else 0)
    weights = f"weights {format_bytes(needed)}"
    if student_bytes:
        weights += f", the student's {format_bytes(student_bytes)}"
    tokens = "; the same tokens as the student" if scores and is_other_model else ""
    return f"Teacher {spec}: {weights}, of {format_bytes(hardware.usable_bytes)} of memory{tokens}"
