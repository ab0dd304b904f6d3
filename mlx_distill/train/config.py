"""The settings of a training run and the figures it ends with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_distill.config import setting

SCHEDULES = ("cosine", "linear", "constant")
METHODS = ("lora", "dora", "full")
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The demo that the project comes from trained 1.7M of Qwen2.5-0.5B's 494M parameters (0.3 %) for three epochs. It
    # did not say which layers: the MLP alone at rank 4 is 1,658,880.
    "demo": {
        "epochs": 3,
        "method": "lora",
        "rank": 4,
        "alpha": 16.0,
        "targets": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    },
}
"""Settings as one, by name."""


@dataclass(frozen=True)
class TrainConfig:
    """What is trained on what, and how.

    The defaults are the recipe that scripts/bench/recipe.py found for the sample student on its valid rows. They are
    those of Qwen2.5-0.5B too, on which they were not measured: for a low-rank update a rate of about ten times that of
    full fine-tuning, and more for runs of few updates, holds across sizes ("LoRA Without Regret"), and batches are to
    be small; the best checkpoint by valid loss is kept where the last epochs learn the rows by heart.
    """

    model: Path = setting(help="the student: an MLX model folder")
    data: Path = setting(help="folder with train.jsonl and valid.jsonl")
    adapter: Path = setting(help="folder that the adapter is written to")
    epochs: int = setting(3, help="passes over the training rows")
    batch_size: int = setting(2, help="rows an update; micro_tokens says how many of them go through at once")
    method: str = setting(
        "lora", help="a low-rank update, or all weights (which mlx_lm fuse makes a model of)", choices=METHODS
    )
    learning_rate: float = setting(1e-3, help="peak learning rate")
    schedule: str = setting("cosine", help="how the rate falls after warm-up", choices=SCHEDULES)
    warmup: float = setting(0.1, help="share of the run over which the rate rises")
    rank: int = setting(8, help="rank of the low-rank update")
    alpha: float = setting(32.0, help="strength of the low-rank update; it is multiplied by alpha / rank")
    dropout: float = setting(0.0, help="dropout before the low-rank update")
    targets: tuple[str, ...] = setting(
        (), help="layers to adapt, such as self_attn.q_proj; none means all linear layers"
    )
    weight_decay: float = setting(0.01, help="AdamW's decay of the trained weights")
    clip: float = setting(1.0, help="largest norm of the gradient; 0 clips nothing")
    max_length: int = setting(2048, help="longest row in tokens; longer ones are refused by name")
    micro_tokens: int = setting(
        0,
        help="tokens in one forward pass; the gradients of a larger batch are accumulated over several. "
        "0 means what fits the memory, 4096 at most",
    )
    grad_checkpoint: bool = setting(False, help="keep fewer activations and compute them again: less memory, slower")
    evaluate_every: int = setting(0, help="steps between looks at valid.jsonl; 0 means once an epoch")
    patience: int = setting(0, help="stop after this many looks without improvement; 0 never stops early")
    checkpoint_every: int = setting(20, help="steps between checkpoints, beside the one at each epoch's end")
    minutes: float = setting(0.0, help="time budget: the schedule is fitted to it; 0 means none")
    seed: int = setting(0, help="makes runs repeatable")
    preset: str = setting(
        "",
        help="settings as one, in place of the defaults: `demo` is the shape of the demo that it all comes from, "
        "on Qwen2.5-0.5B (the MLP at rank 4: 1.7M parameters, 3 epochs); empty: none",
        choices=tuple(PRESETS),
    )
    resume: bool = setting(False, help="go on from the last checkpoint of this folder")
    force: bool = setting(False, help="train anew even where the folder holds a run")

    def __post_init__(self) -> None:
        self._apply_preset()
        for name in ("epochs", "batch_size", "rank", "max_length", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        for name in ("learning_rate", "alpha"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}, it must be a positive number")
        for name in ("weight_decay", "clip", "evaluate_every", "patience", "minutes", "micro_tokens"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must not be negative")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, it must be at least 0 and less than 1")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}, it is a share of the run: at least 0 and less than 1")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}, not one of {', '.join(SCHEDULES)}")
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}, not one of {', '.join(METHODS)}")
        if self.method == "full" and (self.targets or self.dropout):
            raise ValueError("targets and dropout belong to a low-rank update; method 'full' has none")
        if self.grad_checkpoint and self.dropout:
            # The second computation of a layer would draw other units to drop than the first.
            raise ValueError("grad_checkpoint and dropout exclude each other")
        if self.resume and self.force:
            raise ValueError("resume and force exclude each other")

    def _apply_preset(self) -> None:
        """Put the preset's values in place of defaults; a setting that says something else contradicts it."""
        if self.preset and self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}, not one of {', '.join(PRESETS)}")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, value in PRESETS.get(self.preset, {}).items():
            given = getattr(self, name)
            if given not in (value, defaults[name]):
                raise ValueError(f"preset {self.preset!r} sets {name} to {value}, and {name} is {given}: leave one out")
            object.__setattr__(self, name, value)

    @property
    def scale(self) -> float:
        """What mlx-lm multiplies the update by."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class TrainResult:
    """What training ended with. Losses and accuracies are over answer tokens of valid.jsonl."""

    adapter: Path
    """Folder of the best adapter; `last/` inside it holds the last one."""
    n_trainable: int
    n_parameters: int
    steps: int
    epochs: float
    stopped: str
    """`finished`, `time budget` or `early stop`."""
    best_step: int
    valid_loss_before: float
    valid_loss: float
    """The best adapter's."""
    valid_accuracy_before: float
    valid_accuracy: float
    n_train_rows: int
    n_valid_rows: int
    n_valid_tokens: int
    supervised_tokens: int
    """Trained on, repeats included."""
    supervised_tokens_per_second: float
    """Over the steps alone, evaluation left out."""
    peak_bytes: int
    """The most memory MLX held."""
    estimated_bytes: int
    """What the memory plan expected of it; 0 where the architecture is none that it knows."""
    seconds: float
    """The whole run, evaluation included, resumed parts added up."""
