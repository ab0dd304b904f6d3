"""The code in the answers to the test prompts: whether each block parses, and the habits that it shows.

Habits are counted in blocks that are whole and parse; code that does not stand shows none.
"""

from __future__ import annotations

import ast
import platform
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mlx_distill.code_blocks import CodeBlock, code_blocks, python_fault, sql_fault, sql_parser, sql_statements
from mlx_distill.code_blocks.execution import LIMITS, run_blocks
from mlx_distill.compare.answers import PromptAnswers
from mlx_distill.compare.java import java_faults

VOICES = ("base", "distilled", "teacher")
CUT_OFF = "the answer ends inside it"
LONGEST_BLOCK = 20_000
"""Characters; a longer block is not checked."""

HABITS = {
    "docstrings": ("python", "functions", "functions that open with a docstring"),
    "type hints": ("python", "functions", "functions with every parameter and the result annotated"),
    "helper functions": ("python", "functions", "functions that another function of the same block calls"),
    "context managers": ("python", "blocks", "blocks that use `with` or define a context manager"),
    "CTEs": ("sql", "statements", "statements with a common table expression"),
    "window functions": ("sql", "statements", "statements with an OVER clause"),
    "joins": ("sql", "statements", "statements with a join, a comma in FROM included"),
}
"""Habit to its language, what it is a share of, and its definition."""


@dataclass(frozen=True)
class BlockCheck:
    """One fenced block of an answer."""

    language: str
    fault: str | None
    """Why it does not stand; "" where it is whole and parses, None where its language is not checked."""
    ran: str | None = None
    """Why it did not run to its end; "" where it did, None where it was not executed."""
    newer: str = ""
    """What it uses of a later release than its parser is of, such as `virtual threads (Java 21)`: not checked."""


@dataclass(frozen=True)
class Share:
    """`n` of `of`."""

    n: int
    of: int


@dataclass(frozen=True)
class CodeFindings:
    """What the code of all answers to the test prompts is like."""

    unchecked: tuple[str, ...]
    """Languages of blocks that nothing here parsed."""

    parsers: Mapping[str, str]
    """Language to what parsed it, with its version; a language that is absent here was not checked."""
    checks: Mapping[str, Mapping[str, tuple[BlockCheck, ...]]]
    """Prompt id to voice (`base`, `distilled`, `teacher`) to the blocks of its answer, in order."""
    stands: Mapping[str, Mapping[str, Share]]
    """Language to voice to the blocks that are whole and parse, of those that there are."""
    habits: Mapping[str, Mapping[str, Share]]
    """Habit (a key of HABITS) to voice to how often it is seen, in code that parses."""
    executed: Mapping[str, Share] | None
    """Voice to the Python blocks that ran to their end, of those that stand; None where nothing was executed."""
    limits: str
    """Under which they ran, in words; empty where nothing was executed."""


def examine(answers: Sequence[PromptAnswers], *, execute: bool = False) -> CodeFindings:
    """Parse every block of Python, SQL and Java, and count habits.

    Nothing is executed unless `execute` says so: then the Python blocks that stand, those of an answer in one process.
    """
    blocks = [
        (one.id, voice, block)
        for one in answers
        for voice in VOICES
        if (answer := getattr(one, voice))
        for block in code_blocks(answer.text)
    ]
    java = [block.code for _, _, block in blocks if block.language == "java" and len(block.code) <= LONGEST_BLOCK]
    by_javac = java_faults(java) if java else None
    java_fault = iter(zip(by_javac.faults, by_javac.newer, strict=True) if by_javac else ())

    parsers: dict[str, str] = {}
    checks: dict[str, dict[str, list[BlockCheck]]] = {
        one.id: {voice: [] for voice in VOICES if getattr(one, voice)} for one in answers
    }
    for prompt, voice, block in blocks:
        fault, newer = None, ""
        if len(block.code) <= LONGEST_BLOCK:
            if block.language == "python":
                fault = python_fault(block.code)
                parsers["python"] = f"the grammar of Python {platform.python_version()}"
            elif block.language == "sql":
                fault = sql_fault(block.code)
                parsers["sql"] = sql_parser()
            elif block.language == "java" and by_javac:
                fault, newer = next(java_fault)
                parsers["java"] = f"the grammar of {by_javac.version}; names and library calls are not checked"
        if fault == "" and not block.closed:
            fault = CUT_OFF
        checks[prompt][voice].append(BlockCheck(block.language, fault, newer=newer))
    voices = [voice for voice in VOICES if any(getattr(one, voice) for one in answers)]
    standing = [
        (voice, block)
        for (prompt, voice, block), check in zip(blocks, _in_order(checks, blocks), strict=True)
        if check.fault == ""
    ]
    unchecked = {
        check.language
        for of in checks.values()
        for found in of.values()
        for check in found
        if check.fault is None and check.language not in parsers
    }
    if execute:
        _execute(checks, blocks)
    return CodeFindings(
        tuple(sorted(filter(None, unchecked))),
        parsers,
        {prompt: {voice: tuple(found) for voice, found in of.items()} for prompt, of in checks.items()},
        _stands(checks, voices),
        _habits(standing, voices),
        _ran_to_the_end(checks, voices) if execute else None,
        LIMITS.in_words() if execute else "",
    )


def _execute(checks: dict[str, dict[str, list[BlockCheck]]], blocks: Iterable[tuple[str, str, CodeBlock]]) -> None:
    """Run the Python blocks that stand, answer by answer, and write down at each block's check how that ended."""
    codes = defaultdict[tuple[str, str], list[str]](list)
    for prompt, voice, block in blocks:
        codes[prompt, voice].append(block.code)
    for (prompt, voice), of_answer in codes.items():
        found = checks[prompt][voice]
        chosen = [n for n, check in enumerate(found) if check.language == "python" and check.fault == ""]
        ends = run_blocks([of_answer[n] for n in chosen]) if chosen else []
        for n, ran in zip(chosen, ends, strict=True):
            found[n] = replace(found[n], ran=ran)


def _ran_to_the_end(
    checks: Mapping[str, Mapping[str, Sequence[BlockCheck]]], voices: Sequence[str]
) -> dict[str, Share]:
    ends = {
        voice: [check.ran == "" for of in checks.values() for check in of.get(voice, ()) if check.ran is not None]
        for voice in voices
    }
    return {voice: Share(sum(outcomes), len(outcomes)) for voice, outcomes in ends.items()}


def _in_order(
    checks: Mapping[str, Mapping[str, Sequence[BlockCheck]]], blocks: Iterable[tuple[str, str, CodeBlock]]
) -> Iterator[BlockCheck]:
    """The checks in the order of the blocks that they are of."""
    left = {(prompt, voice): iter(found) for prompt, of in checks.items() for voice, found in of.items()}
    return (next(left[prompt, voice]) for prompt, voice, _ in blocks)


def _stands(
    checks: Mapping[str, Mapping[str, Sequence[BlockCheck]]], voices: Sequence[str]
) -> dict[str, dict[str, Share]]:
    counts: dict[str, dict[str, list[bool]]] = defaultdict(lambda: {voice: [] for voice in voices})
    for of in checks.values():
        for voice, found in of.items():
            for check in found:
                if check.fault is not None:
                    counts[check.language][voice].append(check.fault == "")
    return {
        language: {voice: Share(sum(outcomes), len(outcomes)) for voice, outcomes in counts[language].items()}
        for language in ("python", "sql", "java")
        if language in counts
    }


def _habits(standing: Iterable[tuple[str, CodeBlock]], voices: Sequence[str]) -> dict[str, dict[str, Share]]:
    seen: dict[str, dict[str, list[bool]]] = {name: {voice: [] for voice in voices} for name in HABITS}
    for voice, block in standing:
        look = _LOOKS.get(block.language)
        for habit, outcomes in look(block.code).items() if look else ():
            seen[habit][voice] += outcomes
    return {
        habit: {voice: Share(sum(outcomes), len(outcomes)) for voice, outcomes in of.items()}
        for habit, of in seen.items()
        if any(of.values())
    }


Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_habits(code: str) -> dict[str, list[bool]]:
    """Each habit's outcomes, one a function, or one for the block."""
    tree = ast.parse(code)
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    calls = [(function, _called(function)) for function in functions]
    return {
        "docstrings": [bool(ast.get_docstring(function)) for function in functions],
        "type hints": [_is_annotated(function) for function in functions],
        "helper functions": [
            any(function.name in names for caller, names in calls if caller is not function) for function in functions
        ],
        "context managers": [any(map(_manages_context, ast.walk(tree)))],
    }


def _called(function: Function) -> set[str]:
    """Names that a function calls, plainly or as an attribute (`self.helper()`)."""
    called = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return {node.id if isinstance(node, ast.Name) else getattr(node, "attr", "") for node in called}


def _is_annotated(function: Function) -> bool:
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    if named and named[0].arg in ("self", "cls"):
        named = named[1:]
    return all(argument.annotation for argument in named) and (function.returns is not None)


def _manages_context(node: ast.AST) -> bool:
    if isinstance(node, Function):
        decorators = {getattr(item, "id", getattr(item, "attr", "")) for item in node.decorator_list}
        return node.name in ("__enter__", "__aenter__") or bool(decorators & {"contextmanager", "asynccontextmanager"})
    return isinstance(node, (ast.With, ast.AsyncWith))


def sql_habits(code: str) -> dict[str, list[bool]]:
    """Each habit's outcomes, one a statement."""
    from sqlglot import exp

    statements = sql_statements(code)
    return {
        "CTEs": [bool(statement.find(exp.CTE)) for statement in statements],
        "window functions": [bool(statement.find(exp.Window)) for statement in statements],
        "joins": [bool(statement.find(exp.Join)) for statement in statements],
    }


_LOOKS: Mapping[str, Callable[[str], dict[str, list[bool]]]] = {"python": python_habits, "sql": sql_habits}
