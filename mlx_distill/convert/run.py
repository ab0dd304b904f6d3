"""`convert`: a student from the Hub, a folder or a GGUF file to an MLX model folder for the other stages.

The weights keep the source's type. A source in MLX format is not copied: the folder holds links to its files.
`mlx_distill.json` in the folder records the source.
"""

from __future__ import annotations

import time

from mlx_distill import device
from mlx_distill.convert.config import ConvertConfig, ConvertResult
from mlx_distill.convert.sources import Source, locate
from mlx_distill.errors import InputError
from mlx_distill.events import Note, Report, ignore
from mlx_distill.models.provenance import Provenance
from mlx_distill.storage.atomic import is_inside, new_folder


def run(config: ConvertConfig, report: Report = ignore) -> ConvertResult:
    """Convert a student, load the result and let it write a few tokens. An up-to-date result is left alone.

    Raises InputError or MissingError if the source is missing or not supported, MachineError if the Hub cannot be
    reached, VerificationError if the result does not work. An error leaves nothing at `config.out`.
    """
    started = time.monotonic()
    made = Provenance.load(config.out)
    if made and not config.force:
        reason = _why_again(made, config)
        if not reason:
            figures = {**made.result, "path": config.out, "already_there": True}
            return ConvertResult(**figures, seconds=round(time.monotonic() - started, 2))
        report(Note(f"{config.out}: converting again because {reason}"))
    source = locate(config.source)
    _check(source, config)
    device.prepare()
    from mlx_distill.convert.build import build  # imports mlx, which an up-to-date result does not need

    with new_folder(config.out, replace=config.force or made is not None) as scratch:
        figures = build(source, config, scratch, report)
    seconds = round(time.monotonic() - started, 2)
    return ConvertResult(path=config.out, already_there=False, seconds=seconds, **figures)


def _why_again(made: Provenance, config: ConvertConfig) -> str:
    """Return the reason to convert again, or "" if the folder is up to date.

    Raises InputError if a conversion would destroy a student of another source, or files that somebody edited.
    """
    out = config.out
    if made.source != config.source:
        raise InputError(
            f"{out} holds another student, made from {made.source}.",
            "Choose another path, or pass --force to replace it.",
        )
    if missing := made.missing_outputs(out):
        return f"{', '.join(missing)} is gone"
    edited = made.edited_outputs(out)
    if edited and not made.result.get("linked"):
        raise InputError(f"{out}: {', '.join(edited)} was changed after the conversion.", "Pass --force to replace it.")
    settings = [name for name, value in config.result_settings.items() if value != made.settings.get(name)]
    if config.revision == made.revision and "revision" in settings:
        settings.remove("revision")  # it names the commit that an earlier run pinned
    changed = [*settings, *edited, *made.changed_inputs()]
    return f"{', '.join(changed)} changed" if changed else ""


def _check(source: Source, config: ConvertConfig) -> None:
    """Refuse settings without effect, and an output folder that would destroy the source."""
    if config.revision and source.kind != "hub":
        raise InputError(f"revision: {config.source} is not a Hub repository.", "Leave --revision out.")
    if source.path and is_inside(source.path, config.out):
        raise InputError(f"{config.out} is or contains the source {config.source}.", "Choose another --out.")
