"""Title, facts and command of a report, shared by Markdown and HTML."""

from __future__ import annotations

import shlex

from mlx_distill.compare.collected import Collected
from mlx_distill.compare.report import ModelInfo, Report
from mlx_distill.formatting import format_duration, format_percent, format_usd, plural
from mlx_distill.training_run import TrainingRun


def title(report: Report) -> str:
    """Return the title of the report."""
    names = f"{report.a.name} and {report.b.name} compared"
    adapter = report.b.adapter
    return f"{adapter.folder.name}: {names}" if report.is_before_and_after and adapter else names


def lead(report: Report) -> str:
    """Return what was compared on what, in one or two sentences."""
    n_rows = sum(one.origin == "test row" for one in report.answers)
    prompts = plural(len(report.answers) - n_rows, "test prompt")
    prompts += f" and the prompts of {plural(n_rows, 'test row')}" if n_rows else ""
    said = f"{report.a.name} and {report.b.name}, compared on held-out rows and by their answers to {prompts}."
    if (report.a.path, report.a.adapter) == (report.b.path, report.b.adapter):
        said += " They are the same model, sampled with two seeds: differences in the answers are chance."
    return said


def facts(report: Report) -> dict[str, str]:
    """Return what is known about the comparison: label to text."""
    collected, same_path = report.collected, report.a.path == report.b.path
    n_by_teacher = sum(one.teacher is not None for one in report.answers)
    found = {
        "When": report.created_at.replace("T", " ").replace("+00:00", " UTC"),
        "Time": format_duration(report.seconds),
        "Machine": ", ".join(filter(None, report.machine.values())),
        "Model" if same_path else f"Model of {report.a.name}": _model(report.a),
        **({} if same_path else {f"Model of {report.b.name}": _model(report.b)}),
        **_adapter(report.a),
        **_adapter(report.b),
        "Teacher": f"{report.teacher} ({n_by_teacher} of {len(report.answers)} prompts)"
        if report.teacher
        else "left out",
    }
    if collected:
        models = f" by {', '.join(collected.models)}" if collected.models else ""
        found["Collected"] = f"{collected.n_answered:,} of {plural(collected.n_prompts, 'prompt')} answered{models}"
        found["Cost of the answers"] = _cost(collected)
    found["Versions"] = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return found


def _model(model: ModelInfo) -> str:
    origin = " ".join(filter(None, (model.source, model.revision[:12])))
    size = f"{model.path}: {model.model_type}, {format_parameters(model.n_parameters)} parameters"
    return size + (f", from {origin}" if origin else "")


def _adapter(model: ModelInfo) -> dict[str, str]:
    found = {}
    if model.adapter:
        one, share = model.adapter, format_percent(model.adapter.n_trainable / model.n_parameters)
        size = f"{format_parameters(one.n_trainable)} parameters ({share})"
        found[f"Adapter of {model.name}"] = f"{one.origin}; rank {one.rank}, scale {one.scale:g}; {size}"
    if model.training and model.training.result:
        found[f"Training of {model.name}"] = training_line(model.training)
    return found


def training_line(training: TrainingRun) -> str:
    """Return a line such as `65 rows, 9 steps, 0.53 epochs; ended by: time budget`, as far as it is known."""
    result = training.result
    counts = (("n_train_rows", "row"), ("steps", "step"))
    parts = [plural(result[key], noun) for key, noun in counts if isinstance(result.get(key), int)]
    parts += [f"{result['epochs']} epochs"] if "epochs" in result else []
    return ", ".join(parts) + (f"; ended by: {result['stopped']}" if result.get("stopped") else "")


def _cost(collected: Collected) -> str:
    if collected.cost_usd is None:
        is_recorded = all(teacher.startswith("recorded:") for teacher in collected.teachers)
        return "none: the answers are recorded" if is_recorded else "unknown"
    unpriced = collected.n_answered - collected.n_priced
    return format_usd(collected.cost_usd) + (f"; {unpriced:,} answers have no price" if unpriced else "")


def command(report: Report) -> str:
    """Return the command line that repeats the comparison."""
    words = ["mlx-distill", "compare"]
    for name, value in report.settings.items():
        option = f"--{name.replace('_', '-')}"
        if name in ("a", "b"):
            words.append(str(value))
        elif name == "teacher" and not value:
            words.append("--no-teacher")
        elif isinstance(value, bool):
            words += [option] if value and name == "execute" else []
        elif value is not None and value not in ("", {}):
            words += [option, str(value)]
    return shlex.join(words)


def format_parameters(count: int) -> str:
    """Return a number of parameters as people write it: `1.76M`, `494M`, `7.6B`."""
    return f"{count / 1e6:.3g}M" if count < 1e9 else f"{count / 1e9:.3g}B"
