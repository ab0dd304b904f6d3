"""Figures and answers in words: one wording for the terminal, Markdown and the page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlx_distill.comparison.answers import StudentAnswer, TeacherAnswer
from mlx_distill.comparison.code import HABITS, VOICES, BlockCheck, CodeFindings, Share
from mlx_distill.comparison.figures import CONFIDENCE, FEWEST_FAMILIES, Bounded, HeldOut, Measured
from mlx_distill.comparison.history import Collected, Course
from mlx_distill.comparison.vocabulary import Vocabulary

if TYPE_CHECKING:
    from mlx_distill.comparison.report import Report
    from mlx_distill.comparison.sides import SideFacts, StudentFacts

INTERVAL = f"{CONFIDENCE:.0%} interval".replace("%", " %")


def figure_lines(measured: Measured) -> list[tuple[str, str, str, str, str]]:
    """(figure, base, distilled, difference, interval of the difference), ready to be shown."""
    base, distilled, difference = measured.base, measured.distilled, measured.difference
    relative = f" ({100 * difference.loss.value / base.loss:+.1f} %)" if base.loss else ""
    return [
        (
            "loss",
            f"{base.loss:.3f}",
            f"{distilled.loss:.3f}",
            f"{difference.loss.value:+.3f}{relative}",
            loss_bounds(measured),
        ),
        (
            "perplexity",
            f"{base.perplexity:.2f}",
            f"{distilled.perplexity:.2f}",
            f"{difference.perplexity.value:+.2f}",
            bounds(difference.perplexity, "{:+.2f}"),
        ),
        (
            "token accuracy",
            percent(base.token_accuracy),
            percent(distilled.token_accuracy),
            points(difference.token_accuracy.value),
            accuracy_bounds(measured),
        ),
    ]


def loss_bounds(measured: Measured) -> str:
    """The interval of the loss's difference; `-` where there is none."""
    return bounds(measured.difference.loss, "{:+.3f}")


def accuracy_bounds(measured: Measured) -> str:
    """The interval of the token accuracy's difference in points; `-` where there is none."""
    return bounds(measured.difference.token_accuracy, "{:+.1f}", scale=100)


def scope(measured: Measured) -> str:
    """What the figures are over."""
    return (
        f"Over {count(measured.n_tokens, 'answer token')} of {count(measured.n_rows, 'test row')} in "
        f"{count(measured.n_families, 'family', 'families')}, end tokens included; training sees none of them."
    )


def interval_note(measured: Measured) -> str:
    """Why there is no interval, or what it is."""
    if measured.has_interval:
        return f"{INTERVAL}: paired bootstrap over families."
    return (
        f"No interval: {count(measured.n_families, 'family', 'families')} of test rows cannot say how other prompts "
        f"would fare ({FEWEST_FAMILIES} are the fewest), and the difference itself may be chance."
    )


def state(answer: StudentAnswer | TeacherAnswer) -> str:
    """`finished, 120 tokens, 31 tokens/s`, or `cut off at the limit, 512 tokens, 31 tokens/s, 40.0 % repeated`."""
    length = count(answer.n_tokens, "token") if answer.n_tokens is not None else ""
    repeats = f"{percent(answer.repetition)} repeated" if answer.repetition else ""
    if isinstance(answer, TeacherAnswer):
        ending = "finished" if answer.finished else f"not finished: {answer.stop_reason}"
        return ", ".join(filter(None, (ending, length, repeats)))
    ending = "finished" if answer.finished else "cut off at the limit"
    return ", ".join(filter(None, (ending, length, f"{answer.tokens_per_second:.0f} tokens/s", repeats)))


def heading(name: str) -> str:
    """Base, Distilled, Teacher; a folder's name as it is."""
    return name.capitalize() if name in VOICES else name


LANGUAGES = {"python": "Python", "sql": "SQL", "java": "Java"}


def language_name(language: str) -> str:
    return LANGUAGES.get(language, language or "code")


def share_of(share: Share) -> str:
    """`2 of 3`; `-` of none."""
    return f"{share.n} of {share.of}" if share.of else "-"


def check_words(check: BlockCheck) -> str:
    """`Python parses`, `Python does not stand: line 3: invalid syntax`, `bash: not checked`."""
    name = language_name(check.language)
    if check.newer and not check.fault:
        kept = f"{name}: not checked" if check.fault is None else f"{name} parses"
        return f"{kept}; {check.newer} is newer than the compiler here" + (", not checked" if check.fault == "" else "")
    if check.fault is None:
        return f"{name}: not checked"
    if check.fault:
        return f"{name} does not stand: {check.fault}"
    if check.ran is None:
        return f"{name} parses"
    return f"{name} parses, and does not run to its end: {check.ran}" if check.ran else f"{name} parses and runs"


def code_note(code: CodeFindings) -> str:
    """How the table of code was made, and what it does not say."""
    unchecked = f" Not checked: {', '.join(map(language_name, code.unchecked))}." if code.unchecked else ""
    return (
        "A block stands if it is whole and parses, which is no proof that it is right; habits are counted in blocks "
        f"that stand. Parsed with {'; '.join(code.parsers.values())}.{unchecked} {_executed_note(code)}"
    )


def _executed_note(code: CodeFindings) -> str:
    if code.executed is None:
        return "Nothing was executed."
    return (
        "Python blocks that stand were executed, those of an answer one after another in a process of its own, with "
        f"{code.limits}; a block that only defines functions calls none of them, so running to its end proves little. "
        "SQL and Java were parsed, not executed."
    )


CATEGORY_HEADER = (
    *("category", "rows", "families", "tokens", "loss", "difference", INTERVAL),
    *("token accuracy", "difference", INTERVAL),
)
CATEGORY_NOTE = f"A category of fewer than {FEWEST_FAMILIES} families has no interval: its figures may be chance."


def category_rows(test: HeldOut) -> list[tuple[str, ...]]:
    """The figures of each category under CATEGORY_HEADER."""
    return [
        (
            name,
            *(f"{number:,}" for number in (group.n_rows, group.n_families, group.n_tokens)),
            f"{group.base.loss:.3f} → {group.distilled.loss:.3f}",
            f"{group.difference.loss.value:+.3f}",
            loss_bounds(group),
            f"{percent(group.base.token_accuracy)} → {percent(group.distilled.token_accuracy)}",
            points(group.difference.token_accuracy.value),
            accuracy_bounds(group),
        )
        for name, group in test.by_category.items()
    ]


def lacks_intervals(test: HeldOut) -> bool:
    return not all(group.has_interval for group in test.by_category.values())


def code_rows(code: CodeFindings, names: Mapping[str, str]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table of code: its header and its rows, a column for each who answered."""
    voices = list(next(iter(code.stands.values()), {}))
    rows = [
        (f"{language_name(language)} blocks that stand", *(share_of(shares[voice]) for voice in voices))
        for language, shares in code.stands.items()
    ]
    if code.executed is not None:
        rows.append(("Python blocks that run to their end", *(share_of(code.executed[voice]) for voice in voices)))
    rows += [
        (f"{habit} ({HABITS[habit][1]})", *(share_of(shares[voice]) for voice in voices))
        for habit, shares in code.habits.items()
    ]
    return ("", *(names[voice] for voice in voices)), rows


def vocabulary_header(names: Mapping[str, str]) -> tuple[str, ...]:
    return ("term", names["base"], names["distilled"], "teacher", "z")


def vocabulary_rows(words: Vocabulary) -> list[tuple[str, ...]]:
    """The strongest terms under `vocabulary_header`."""
    return [
        (one.term, f"{one.base:.1f}", f"{one.distilled:.1f}", f"{one.teacher:.1f}", f"{one.z:.1f}")
        for one in words.terms
    ]


def vocabulary_line(words: Vocabulary, names: Mapping[str, str]) -> str:
    """What was found, and from how much text."""
    base, distilled = names["base"], names["distilled"]
    read = (
        f"Read: {count(words.n_teacher, 'term')} of the teacher, {words.n_base:,} of {base}, "
        f"{words.n_distilled:,} of {distilled}."
    )
    if words.visible_rate is None:
        return f"{read} That is too little to tell any word of the teacher's from chance."
    limit = (
        f"{read} With so much text a term that {base} never uses stands out where it makes up "
        f"{words.visible_rate:.0f} or more of the teacher's 1,000; rarer habits stay unseen. More test prompts or "
        "longer answers show more."
    )
    examined = f"Of {count(words.n_examined, 'term')} that the teacher uses across subjects"
    if not words.n_found:
        return f"{limit} {examined}, none is the teacher's rather than {base}'s beyond chance."
    found = (
        f"{limit} {examined}, {words.n_found} set it apart from {base}; chance alone would give about "
        f"{0.025 * words.n_examined:.0f}."
    )
    if words.moved is None:
        return f"{found} Chosen by other answers than they are counted in, they do not."
    return (
        f"{found} Chosen by other answers than they are counted in, such terms make up {words.base:.1f} of 1,000 of "
        f"{base}, {words.distilled:.1f} of {distilled} and {words.teacher:.1f} of the teacher: {distilled} went "
        f"{percent(words.moved)} of the way."
    )


def title(report: Report) -> str:
    """What the report is of."""
    adapter = report.sides["distilled"].adapter
    if report.is_before_and_after and adapter:
        return f"{adapter.folder.name}: base and distilled compared"
    return f"{report.names['base']} and {report.names['distilled']} compared"


def subject(report: Report) -> str:
    """What was compared on what, in a sentence."""
    collected, adapter = report.history.collected, report.sides["distilled"].adapter
    on = f"on {count(report.test.n_rows, 'held-out row')}, and by answers to {questions(report)}"
    if report.is_before_and_after and adapter:
        taught = f" on answers of {', '.join(collected.teachers)}" if collected and collected.teachers else ""
        model = report.sides["base"].model
        return (
            f"{model.path.name}, as it was and after training {millions(adapter.n_trainable)} weights{taught}: "
            f"compared {on}."
        )
    same = (
        " They are the same, sampled with two seeds: what differs in the answers is chance."
        if report.sides["base"].is_same_as(report.sides["distilled"])
        else ""
    )
    return f"{report.names['base']} and {report.names['distilled']}, compared {on}.{same}"


def questions(report: Report) -> str:
    """`4 test prompts and 8 questions of test rows`."""
    n_rows = sum(one.origin == "test row" for one in report.answers)
    prompts = count(len(report.answers) - n_rows, "test prompt")
    return f"{prompts} and {count(n_rows, 'question')} of test rows" if n_rows else prompts


def facts(report: Report) -> list[tuple[str, str]]:
    """When, on what, from what: name and value, what is not known left out."""
    machine, collected = report.machine, report.history.collected
    computed = ", ".join(part for part in (machine.device, machine.kind, machine.blas, machine.dtype) if part)
    found = [
        ("When", report.when.replace("T", " ").replace("+00:00", " UTC")),
        ("Machine", f"{machine.platform}; {computed}"),
    ]
    if report.is_before_and_after:
        side = report.sides["distilled"]
        found += [("Student", model_words(side.model)), *adapter_facts(side)]
    else:
        for side in report.sides.values():
            own = [("Model", model_words(side.model)), *adapter_facts(side)]
            found += [(f"{side.name}: {name.lower()}", value) for name, value in own]
    if collected:
        models = f", from: {', '.join(collected.models)}" if collected.models else ""
        answered = f"{collected.n_answered:,} of {collected.n_prompts:,} prompts answered{models}"
        found.append(("Teacher's answers", answered))
        found.append(("Cost of the answers", cost(collected)))
    if report.history.stages:
        found.append(("Time", ", ".join(f"{one.stage} {clock(one.seconds)}" for one in report.history.stages)))
    n_taught = sum(one.teacher is not None for one in report.answers)
    beside = f"{report.teacher} ({n_taught} of {len(report.answers)} questions)" if report.teacher else "left out"
    found.append(("Teacher beside the answers", beside))
    return found


def model_words(model: StudentFacts) -> str:
    """A model folder in words."""
    origin = " ".join(part for part in (model.source, model.revision[:12]) if part)
    return f"{model.path}: {model.model_type}, {millions(model.n_parameters)} parameters" + (
        f", from {origin}" if origin else ""
    )


def adapter_facts(side: SideFacts) -> list[tuple[str, str]]:
    """What is known of a side's adapter; nothing of a side without one."""
    adapter, course = side.adapter, side.course
    if not adapter:
        return []
    chosen = ", ".join(part for part in (str(adapter.folder), adapter.choice) if part)
    share = percent(adapter.n_trainable / side.model.n_parameters)
    found = [
        ("Adapter", f"{chosen}; rank {adapter.rank}, scale {adapter.scale:g}"),
        ("Trainable parameters", f"{millions(adapter.n_trainable)} ({share} of the student)"),
    ]
    if course and "n_train_rows" in course.result:
        found.append(("Trained on", training_line(course)))
    return found


def cost(collected: Collected) -> str:
    """What the answers cost, as far as prices are known."""
    if collected.cost_usd is None:
        is_recorded = all(teacher.startswith("recorded:") for teacher in collected.teachers)
        return "none: they were recorded before" if is_recorded else "no price recorded"
    known = collected.n_priced < collected.n_answered
    return f"{collected.cost_usd:.2f} USD" + (
        f" for {collected.n_priced:,} of them; the others have no price recorded" if known else ""
    )


def training_line(course: Course) -> str:
    """`65 rows, 9 steps, 0.53 epochs; ended by its time budget`, as far as it is known."""
    result = course.result
    parts = [
        count(result["n_train_rows"], "row") if isinstance(result.get("n_train_rows"), int) else "",
        count(result["steps"], "step") if isinstance(result.get("steps"), int) else "",
        f"{result['epochs']} epochs" if isinstance(result.get("epochs"), (int, float)) else "",
        f"{course.settings['epochs']} epochs planned" if isinstance(course.settings.get("epochs"), int) else "",
    ]
    ended = f"; ended by: {result['stopped']}" if result.get("stopped") else ""
    return ", ".join(filter(None, parts)) + ended


def time_rows(report: Report) -> list[tuple[str, str]]:
    """Stage or part of the comparison, and its seconds."""
    return [
        *((one.stage, f"{one.seconds:.1f}") for one in report.history.stages),
        *((f"compare: {part}", f"{seconds:.1f}") for part, seconds in report.seconds.items()),
    ]


def clock(seconds: float) -> str:
    """`40 s`, `2 min 55 s`, `1 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def command(settings: Mapping[str, Any]) -> str:
    """The command line that makes the same comparison again."""
    words = ["mlx-distill", "compare"]
    for name, value in settings.items():
        if name in ("first", "second"):
            words.append(str(value))
        elif name == "teacher" and not value:
            words.append("--no-teacher")
        elif name == "judge" and not value:
            continue
        elif isinstance(value, bool):
            words += [f"--{name.replace('_', '-')}"] if value else []
        elif value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def count(number: int, one: str, many: str = "") -> str:
    """`1 row`, `1,200 rows`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """A difference of two shares in percentage points."""
    return f"{100 * share:+.1f} points"


def millions(number: int) -> str:
    """`1.76M`, `494M`: parameters as people write them."""
    return f"{number / 1e6:.3g}M" if number < 1e9 else f"{number / 1e9:.3g}B"


def bounds(figure: Bounded, form: str, scale: float = 1, unit: str = "") -> str:
    """The interval, such as `-0.4 to +1.2`; `-` where there is none."""
    if figure.low is None or figure.high is None:
        return "-"
    return f"{form.format(scale * figure.low)} to {form.format(scale * figure.high)}{unit}"
