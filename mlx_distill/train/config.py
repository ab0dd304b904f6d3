"""The settings of a training run and the figures it ends with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec.structs import force_setattr

from mlx_distill.config import Config, doc, fields_of

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


class TrainConfig(Config, frozen=True):
    """What is trained on what, and how.

    The defaults are the recipe that scripts/bench/recipe.py found for the sample student on its valid rows. They are
    those of Qwen2.5-0.5B too, on which they were not measured: for a low-rank update a rate of about ten times that of
    full fine-tuning, and more for runs of few updates, holds across sizes ("LoRA Without Regret"), and batches are to
    be small; the best checkpoint by valid loss is kept where the last epochs learn the rows by heart.
    """

    model: Annotated[Path, doc("the student: an MLX model folder")]
    data: Annotated[Path, doc("folder with train.jsonl and valid.jsonl")]
    adapter: Annotated[Path, doc("folder that the adapter is written to")]
    epochs: Annotated[int, doc("passes over the training rows", ge=1)] = 3
    batch_size: Annotated[int, doc("rows an update; micro_tokens says how many of them go through at once", ge=1)] = 2
    method: Annotated[
        Literal["lora", "dora", "full"], doc("a low-rank update, or all weights (which mlx_lm fuse makes a model of)")
    ] = "lora"
    learning_rate: Annotated[float, doc("peak learning rate", gt=0)] = 1e-3
    schedule: Annotated[Literal["cosine", "linear", "constant"], doc("how the rate falls after warm-up")] = "cosine"
    warmup: Annotated[float, doc("share of the run over which the rate rises", ge=0, lt=1)] = 0.1
    rank: Annotated[int, doc("rank of the low-rank update", ge=1)] = 8
    alpha: Annotated[float, doc("strength of the low-rank update; it is multiplied by alpha / rank", gt=0)] = 32.0
    dropout: Annotated[float, doc("dropout before the low-rank update", ge=0, lt=1)] = 0.0
    targets: Annotated[
        tuple[str, ...], doc("layers to adapt, such as self_attn.q_proj; none means all linear layers")
    ] = ()
    weight_decay: Annotated[float, doc("AdamW's decay of the trained weights", ge=0)] = 0.01
    clip: Annotated[float, doc("largest norm of the gradient; 0 clips nothing", ge=0)] = 1.0
    max_length: Annotated[int, doc("longest row in tokens; longer ones are refused by name", ge=1)] = 2048
    micro_tokens: Annotated[
        int,
        doc(
            "tokens in one forward pass; the gradients of a larger batch are accumulated over several. "
            "0 means what fits the memory, 4096 at most",
            ge=0,
        ),
    ] = 0
    grad_checkpoint: Annotated[bool, doc("keep fewer activations and compute them again: less memory, slower")] = False
    evaluate_every: Annotated[int, doc("steps between looks at valid.jsonl; 0 means once an epoch", ge=0)] = 0
    patience: Annotated[int, doc("stop after this many looks without improvement; 0 never stops early", ge=0)] = 0
    checkpoint_every: Annotated[int, doc("steps between checkpoints, beside the one at each epoch's end", ge=1)] = 20
    minutes: Annotated[float, doc("time budget: the schedule is fitted to it; 0 means none", ge=0)] = 0.0
    seed: Annotated[int, doc("makes runs repeatable")] = 0
    preset: Annotated[
        Literal["", "demo"],
        doc(
            "settings as one, in place of the defaults: `demo` is the shape of the demo that it all comes from, "
            "on Qwen2.5-0.5B (the MLP at rank 4: 1.7M parameters, 3 epochs); empty: none"
        ),
    ] = ""
    resume: Annotated[bool, doc("go on from the last checkpoint of this folder")] = False
    force: Annotated[bool, doc("train anew even where the folder holds a run")] = False

    def __post_init__(self) -> None:
        self._apply_preset()
        super().__post_init__()

    def check(self) -> None:
        if not (math.isfinite(self.learning_rate) and math.isfinite(self.alpha)):
            raise ValueError("learning_rate and alpha must be finite")
        if self.method == "full" and (self.targets or self.dropout):
            raise ValueError("targets and dropout belong to a low-rank update; method 'full' has none")
        if self.grad_checkpoint and self.dropout:
            # The second computation of a layer would drop other units than the first.
            raise ValueError("grad_checkpoint and dropout exclude each other")
        if self.resume and self.force:
            raise ValueError("resume and force exclude each other")

    def _apply_preset(self) -> None:
        """Put the preset's values in place of defaults; a setting that says something else contradicts it."""
        defaults = {field.name: field.default for field in fields_of(type(self))}
        for name, value in PRESETS.get(self.preset, {}).items():
            given = getattr(self, name)
            if given not in (value, defaults[name]):
                raise ValueError(f"preset {self.preset!r} sets {name} to {value}, and {name} is {given}: leave one out")
            force_setattr(self, name, value)

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
