"""What was compared, where it comes from and how to compare it again, in words: for Markdown and the page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from mlx_distill.compare.history import Collected, Course
from mlx_distill.compare.report import Report
from mlx_distill.compare.sides import SideFacts, StudentFacts
from mlx_distill.compare.wording import count, percent


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


def millions(number: int) -> str:
    """`1.76M`, `494M`: parameters as people write them."""
    return f"{number / 1e6:.3g}M" if number < 1e9 else f"{number / 1e9:.3g}B"
