"""All filters together: of the chosen answers, those that are sound become rows, the others get their reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_distill.errors import InputError
from mlx_distill.events import Progress, Report
from mlx_distill.prepare.decontaminate import Likeness, NearCopies, read_test_prompts
from mlx_distill.prepare.dedup import near_duplicates
from mlx_distill.prepare.filters import Duplicates, broken_code, control_token, identity_phrase
from mlx_distill.prepare.select import Rejection
from mlx_distill.prepare.token_stats import Row
from mlx_distill.records import Example, Message, TeacherRecord
from mlx_distill.storage.package_data import shipped

if TYPE_CHECKING:
    from mlx_distill.prepare.run import PrepareConfig


@dataclass(frozen=True)
class _Sound:
    """An answer that passed every filter which looks at it alone."""

    record: TeacherRecord
    row: Row
    likeness: Likeness


class Sieve:
    """Holds what the filters need; keeps sound answers as rows and notes why the others are not."""

    def __init__(self, config: PrepareConfig) -> None:
        from mlx_distill import device

        device.prepare()
        from mlx_distill.models.load import load_tokenizer
        from mlx_distill.models.tokenize import control_tokens

        self.config = config
        self.near_copies = NearCopies(read_test_prompts(config.test_prompts or shipped("test_prompts.jsonl")))
        self.tokenizer = load_tokenizer(config.model)
        self.control_tokens = control_tokens(self.tokenizer)
        self.rejected: list[Rejection] = []
        self.identity_ids: list[str] = []
        self.nearest_kept: tuple[str, Likeness] | None = None
        system = (Message("system", config.system),)
        if found := control_token(system, self.control_tokens):
            raise InputError(f"The setting system cannot be used: {found}.", "Write it without control tokens.")

    def keep(self, records: Sequence[TeacherRecord], report: Report) -> list[Row]:
        """A row (its split still open) of each record that passes every filter."""
        duplicates = Duplicates()
        sound: list[_Sound] = []
        for done, record in enumerate(records, start=1):
            likeness = self.near_copies.nearest(record)
            row = self._row(record)
            reason, detail = self._fault(record, row, likeness, duplicates)
            if reason:
                self._reject(record, reason, detail)
            else:
                sound.append(_Sound(record, row, likeness))
            report(Progress("prepare", done, len(records), "answers"))
        kept = self._without_near_duplicates(sound)
        self.identity_ids = [each.record.prompt_id for each in kept if identity_phrase(each.record.answer)]
        nearest = max(kept, key=lambda each: each.likeness.value, default=None)
        self.nearest_kept = (nearest.record.prompt_id, nearest.likeness) if nearest else None
        return [each.row for each in kept]

    def _without_near_duplicates(self, sound: Sequence[_Sound]) -> list[_Sound]:
        """Of rows that nearly repeat one another the first; a rejected answer stands in nobody's way."""
        threshold = self.config.filter.near_duplicate
        if not threshold:
            return list(sound)
        repeats = near_duplicates([_said(each.row) for each in sound], threshold)
        for place, repeat in repeats.items():
            first = sound[repeat.of].record.prompt_id
            detail = f"{repeat.likeness:.2f} like {first}, threshold {threshold:g}"
            self._reject(sound[place].record, "near duplicate", detail)
        return [each for place, each in enumerate(sound) if place not in repeats]

    def _reject(self, record: TeacherRecord, reason: str, detail: str) -> None:
        self.rejected.append(Rejection(record.prompt_id, record.key, reason, detail))

    def _row(self, record: TeacherRecord) -> Row:
        """The teacher's own system message gives way to the student's; the answer loses blank space at its ends."""
        from mlx_distill.models.tokenize import render

        system = (Message("system", self.config.system),) if self.config.system else ()
        turns = tuple(message for message in record.messages if message.role != "system")
        messages = (*system, *turns, Message("assistant", record.answer.strip()))
        example = Example(messages, record.prompt_id, record.family, record.category)
        return Row(example, "", render(self.tokenizer, messages))

    def _fault(self, record: TeacherRecord, row: Row, likeness: Likeness, duplicates: Duplicates) -> tuple[str, str]:
        """The first reason against the record and its detail, or two empty texts."""
        config, gate, answer = self.config, self.config.filter, record.answer
        if likeness.value >= config.near_copy:
            return "near copy of a test prompt", f"{likeness}, threshold {config.near_copy}"
        if gate.require_parsing_code and (fault := broken_code(answer)):
            return "code does not parse", fault
        if gate.reject_identity and (phrase := identity_phrase(answer)):
            return "identity phrase", f'the answer says "{phrase}"'
        if found := control_token(row.example.messages, self.control_tokens):
            return "control token", found
        if (length := len(row.rendered.tokens)) > config.max_length:
            return "too long", f"{length} tokens, max_length is {config.max_length}"
        if (length := row.rendered.n_supervised) < gate.shortest_answer:
            return "answer too short", f"{length} tokens, shortest_answer is {gate.shortest_answer}"
        if gate.longest_answer is not None and length > gate.longest_answer:
            return "answer too long", f"{length} tokens, longest_answer is {gate.longest_answer}"
        if same := duplicates.same_as(record):
            return "duplicate", same
        return "", ""


def _said(row: Row) -> str:
    """What was asked and answered; the system message is the same in all rows."""
    return "\n".join(message.content for message in row.example.messages if message.role != "system")
