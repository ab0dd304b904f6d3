"""Keeps near copies of the test prompts out: measured on what a prompt asks for, and on the code of its answer.

Plain string similarity does not do here. By rapidfuzz's token_sort_ratio, "Explain how to use streams in Java, with a
short example." is 90 % like the prompt that asks so for virtual threads, and another question, while "How would you
implement connection pooling for a database in Python?" is 55 % like the prompt that it repeats. So two measures are
taken, each from 0 to 1, and either makes a near copy:

- topic: the share of a test prompt's topic words that prompt and answer hold together, counted only where the prompt
  itself holds more than half of them. Topic words are what is left without grammar, the verbs of asking and the names
  of languages; endings and identifiers' case do not count, and words of one meaning count as one. This finds
  paraphrased and reordered copies, and copies whose tables and names were changed.
- code: the share of the shape of a test prompt's known answer (`code_checks.shape`, runs of five tokens) that the
  answer's code holds. Names and texts are no part of a shape, so this finds renamed copies whatever their prompt says;
  a copy moved to another field (products above their category's average price) is found by this measure alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_distill.code_blocks import code_blocks, shape
from mlx_distill.records import Prompt, TeacherRecord
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.storage.package_data import shipped

RUN = 5
"""Tokens in a run of code: long enough that two different solutions in one style share less than half."""
FEWEST_RUNS = 20
"""A known answer with less code than this says too little about what was copied."""
FEWEST_WORDS = 2
"""A test prompt with fewer topic words is measured by all its words but grammar."""


@dataclass(frozen=True)
class ReservedPrompt:
    """A prompt that is kept for comparing, with its answer where one is known."""

    id: str
    text: str
    answer: str = ""


def read_test_prompts(path: Path) -> list[ReservedPrompt]:
    """The test prompts of a JSONL file; a line may hold its known "answer", and the shipped prompts have one."""
    known = dict(read_jsonl(shipped("sample") / "test_answers.jsonl", _known_answer))
    step = "Name the file of your test prompts, or leave the setting out to use the shipped ones."
    tests = read_jsonl(path, _test_prompt, step)
    return [ReservedPrompt(test.id, test.text, test.answer or known.get(test.id, "")) for test in tests]


def _test_prompt(data: object) -> ReservedPrompt:
    prompt = Prompt.from_json(data)
    answer = data.get("answer", "") if isinstance(data, Mapping) else ""
    if not isinstance(answer, str):
        raise ValueError('"answer" must be text')
    return ReservedPrompt(prompt.id, prompt.text, answer)


def _known_answer(data: object) -> tuple[str, str]:
    if not isinstance(data, Mapping):
        raise ValueError("must be an object")
    return str(data["prompt_id"]), str(data["answer"])


@dataclass(frozen=True)
class Likeness:
    """The test prompt that a record is most like."""

    value: float
    test_id: str
    measure: str
    """`topic` or `code`."""

    def __str__(self) -> str:
        return f"{self.test_id} ({self.measure} {self.value:.2f})"


class NearCopies:
    """Measures records against the test prompts."""

    def __init__(self, tests: Iterable[ReservedPrompt]) -> None:
        tests = list(tests)
        self._topics = {test.id: topic_words(test.text) for test in tests}
        runs = {test.id: _code_runs(test.answer) for test in tests}
        self._runs = {test_id: found for test_id, found in runs.items() if len(found) >= FEWEST_RUNS}

    def nearest(self, record: TeacherRecord) -> Likeness:
        """The highest of all measures over all test prompts; 0 where there is none."""
        asked = words(" ".join(message.content for message in record.messages if message.role == "user"))
        both = asked | words(record.answer)
        found = [Likeness(_topic(topic, asked, both), test_id, "topic") for test_id, topic in self._topics.items()]
        code = _code_runs(record.answer)
        found += [Likeness(len(runs & code) / len(runs), test_id, "code") for test_id, runs in self._runs.items()]
        return max(found, key=lambda likeness: likeness.value, default=Likeness(0.0, "", "topic"))


Topic = frozenset[frozenset[str]]
"""Topic words, each as the stems that mean the same."""


def topic_words(prompt: str) -> Topic:
    """What a prompt is about."""
    content = words(prompt) - _GRAMMAR
    topic = {_meanings(word) for word in content if not _is_asking(word)}
    return frozenset(topic if len(topic) >= FEWEST_WORDS else {_meanings(word) for word in content})


def words(text: str) -> frozenset[str]:
    """Lower-case words; `isBalanced` and `is_balanced` are two words each, and CJK text is cut into pairs."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    found: set[str] = set()
    for word in re.findall(r"[^\W_]+", text.casefold()):
        if re.search(r"[\u3040-\u30ff\u3400-\u9fff]", word):
            found.update(word[start : start + 2] for start in range(max(1, len(word) - 1)))
        else:
            found.add(word)
    return frozenset(found)


def _topic(topic: Topic, asked: frozenset[str], both: frozenset[str]) -> float:
    if not topic or _share(topic, asked) <= 0.5:
        return 0.0
    return _share(topic, both)


def _share(topic: Topic, found: frozenset[str]) -> float:
    return sum(any(_holds(found, stem) for stem in stems) for stems in topic) / len(topic)


def _holds(found: frozenset[str], stem: str) -> bool:
    return stem in found or (len(stem) >= _SHORTEST_STEM and any(word.startswith(stem) for word in found))


def _meanings(word: str) -> frozenset[str]:
    """The stems of the word and of the words that mean the same."""
    same = {_stem(word)}
    for group in _SAME_MEANING:
        if any(_stem(word) == _stem(other) for other in group):
            same.update(_stem(other) for other in group)
    return frozenset(same)


def _stem(word: str) -> str:
    """The word without a common English ending, as long as enough of it is left to begin other forms with."""
    for ending in ("ings", "ing", "ied", "ies", "ed", "es", "s", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= _SHORTEST_STEM:
            return word.removesuffix(ending)
    return word


_SHORTEST_STEM = 4


def _is_asking(word: str) -> bool:
    return _stem(word) in _ASKING


def _code_runs(answer: str) -> set[tuple[str, ...]]:
    runs: set[tuple[str, ...]] = set()
    for block in code_blocks(answer):
        tokens = shape(block)
        runs.update(tokens[start : start + RUN] for start in range(len(tokens) - RUN + 1))
    return runs


_GRAMMAR_TEXT = """
a about above after again all also an and another any are as at be because been before below between both but by
can could did do does done down each either every for from had has have he her here his how i if in into is it its
just like many may me might more most must my need no nor not of off on once only onto or other our out over own
per please same several shall she should so some such than thank thanks that the their them then there these they
this those through to too under until up us very want was we were what when where whether which while who whom
whose why will with within without would you your d ll m re s t ve
"""
_GRAMMAR = frozenset(_GRAMMAR_TEXT.split())

_ASKING_TEXT = """
answer brief build calculate call check class code compute create define demonstrate describe design determine
develop example explain find function get give given guide implement implementation know kind list make method
print produce program provide query return sample script select short show simple small snippet solution statement
table tell test use used using usage verify way work write written
java javascript kotlin python python3 rust sql typescript
"""
_ASKING = frozenset(_stem(word) for word in _ASKING_TEXT.split())
"""How a question is asked and in which language: no part of what it is about."""

_SAME_MEANING: tuple[frozenset[str], ...] = tuple(
    frozenset(group.split())
    for group in (
        "average avg mean",
        "balanced avl",
        "connection conn session",
        "database databases db postgres postgresql mysql mariadb sqlite",
        "department departmental dept division team",
        "earn make paid pay",
        "employee employees emp staff worker people person everybody everyone",
        "salary sal compensation income paid pay wage",
        "share shared reuse lend",
        "thread threads multithreaded",
        "virtual lightweight loom",
    )
)
"""Words that stand for each other in the shipped test prompts' fields; other test prompts have their own words only."""
