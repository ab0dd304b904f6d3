"""Settings and result of `train`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec.structs import force_setattr

from mlx_distill.config import Config, default_of, doc
from mlx_distill.formatting import format_percent
from mlx_distill.models.config import local_folder
from mlx_distill.models.context import ContextConfig
from mlx_distill.storage import files

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The original demo trained 1.7M of Qwen2.5-0.5B's 494M parameters (0.3 %) for three epochs. It did not say which
    # layers; the MLP alone at rank 4 is 1,658,880.
    "demo": {
        "epochs": 3,
        "method": "lora",
        "rank": 4,
        "alpha": 16.0,
        "targets": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    },
}
"""Named sets of settings."""
SEED_STRIDE = 1_000_003
"""More than the steps of a run, so that runs with different seeds share no step seed."""


class TrainConfig(Config, frozen=True):
    """Settings of a training run.

    `scripts/bench/recipe.py` chose the defaults for the sample student by its valid rows. They are a starting point
    for other students too: low-rank updates need about ten times the learning rate of full fine-tuning and small
    batches, across model sizes ("LoRA Without Regret", Thinking Machines 2025). If the last epochs overfit, the best
    checkpoint by valid loss is kept.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "micro_tokens": "micro_batch_tokens",
        "clip": "max_grad_norm",
        "minutes": "time_budget_minutes",
        "evaluate_every": "eval_every",
    }

    model: Annotated[Path, doc("the student: an MLX model folder")]
    data: Annotated[Path, doc("folder with train.jsonl and valid.jsonl")]
    adapter: Annotated[Path, doc("folder for the adapter")]
    epochs: Annotated[int, doc("passes over the training rows", ge=1)] = 3
    batch_size: Annotated[int, doc("rows in a step; micro_batch_tokens limits a forward pass", ge=1)] = 2
    objective: Annotated[
        str,
        doc(
            "what is learned; sft: the teacher's text; kd: its probabilities of each token in it; on-policy: its "
            "probabilities of each token that the student writes"
        ),
    ] = "sft"
    divergence: Annotated[
        Literal["forward", "reverse", "jsd"],
        doc("forward KL (best for kd), reverse KL or jsd (for on-policy), from the teacher's probabilities"),
    ] = "forward"
    beta: Annotated[float, doc("jsd: weight of the teacher in the mixture", gt=0, lt=1)] = 0.5
    temperature: Annotated[float, doc("divides the logits of teacher and student in the loss", gt=0)] = 1.0
    hard_labels: Annotated[float, doc("kd: fraction of the loss that is sft's", ge=0, lt=1)] = 0.0
    teacher: Annotated[
        str,
        doc(
            "a teacher to keep in memory, mlx:FOLDER, mlx:OWNER/NAME or self; kd without one learns from the stored "
            "log-probabilities"
        ),
    ] = ""
    teacher_context: ContextConfig = ContextConfig()
    rollout_samples: Annotated[int, doc("on-policy: answers that the student writes to each prompt", ge=1)] = 1
    rollout_tokens: Annotated[int, doc("on-policy: tokens after which an answer is cut off", ge=1)] = 128
    rollout_temperature: Annotated[float, doc("on-policy: temperature at which the student writes", ge=0)] = 1.0
    prepared_share: Annotated[float, doc("on-policy: fraction of rows learned as prepared, as in kd", ge=0, lt=1)] = 0.0
    method: Annotated[
        Literal["lora", "dora", "full"], doc("what is trained: a low-rank update (lora, dora) or all weights (full)")
    ] = "lora"
    learning_rate: Annotated[float, doc("peak learning rate; for kd, start with 1e-4 to 3e-4", gt=0)] = 1e-3
    schedule: Annotated[Literal["cosine", "linear", "constant"], doc("learning rate after the warm-up")] = "cosine"
    warmup: Annotated[float, doc("fraction of the run over which the learning rate rises", ge=0, lt=1)] = 0.1
    rank: Annotated[int, doc("rank of the low-rank update", ge=1)] = 8
    alpha: Annotated[float, doc("strength of the low-rank update: its factor is alpha / rank", gt=0)] = 32.0
    dropout: Annotated[float, doc("dropout before the low-rank update", ge=0, lt=1)] = 0.0
    targets: Annotated[
        tuple[str, ...], doc("layers to adapt, such as self_attn.q_proj; default: all linear layers")
    ] = ()
    weight_decay: Annotated[float, doc("AdamW's weight decay", ge=0)] = 0.01
    max_grad_norm: Annotated[float, doc("gradient clipping: the largest norm; 0 disables it", ge=0)] = 1.0
    max_length: Annotated[int, doc("longest row in tokens; longer rows are an error", ge=1)] = 2048
    micro_batch_tokens: Annotated[
        int,
        doc(
            "tokens in one forward pass; larger batches accumulate gradients; 0: what fits in memory, up to 4096", ge=0
        ),
    ] = 0
    grad_checkpoint: Annotated[bool, doc("recompute activations in the backward pass: less memory, slower")] = False
    eval_every: Annotated[int, doc("steps between evaluations on valid.jsonl; 0: once an epoch", ge=0)] = 0
    patience: Annotated[int, doc("stop after this many evaluations without improvement; 0: never", ge=0)] = 0
    checkpoint_every: Annotated[int, doc("steps between checkpoints; each epoch also ends with one", ge=1)] = 20
    time_budget_minutes: Annotated[float, doc("time limit, to which the schedule is fitted; 0: none", ge=0)] = 0.0
    seed: Annotated[int, doc("random seed; the same seed gives the same adapter")] = 0
    preset: Annotated[
        Literal["", "demo"], doc("named set of defaults; demo: the original demo (rank 4, MLP only, 3 epochs)")
    ] = ""
    resume: Annotated[bool, doc("continue from the last checkpoint in the adapter folder")] = False
    force: Annotated[bool, doc("start again even if the adapter folder holds a run")] = False

    def __post_init__(self) -> None:
        self._apply_preset()
        super().__post_init__()

    def check(self) -> None:
        if not all(map(math.isfinite, (self.learning_rate, self.alpha, self.temperature, self.rollout_temperature))):
            raise ValueError("learning_rate, alpha and temperatures must be finite")
        if self.objective == "sft" and self._differs("divergence", "beta", "temperature", "hard_labels"):
            raise ValueError("divergence, beta, temperature and hard_labels belong to objective kd")
        rollout_settings = ("rollout_samples", "rollout_tokens", "rollout_temperature", "prepared_share")
        if self.objective != "on-policy" and self._differs(*rollout_settings):
            raise ValueError("rollout_samples, _tokens, _temperature and prepared_share belong to objective on-policy")
        if self.objective == "on-policy" and not self.teacher:
            raise ValueError("objective on-policy needs a teacher on this machine: mlx:FOLDER, mlx:OWNER/NAME or self")
        if self.objective == "on-policy" and self.hard_labels:
            raise ValueError("hard_labels belongs to objective kd: an own answer is not a label")
        if self.divergence != "jsd" and self._differs("beta"):
            raise ValueError("beta belongs to divergence jsd")
        if self.method == "full" and self.objective in ("kd", "on-policy"):
            # The loss is computed in chunks, without a gradient for the head.
            raise ValueError(f"objective {self.objective} trains a low-rank update: choose method lora or dora")
        if self.method == "full" and (self.targets or self.dropout):
            raise ValueError("targets and dropout belong to a low-rank update; method 'full' has none")
        if self.grad_checkpoint and self.dropout:
            # Recomputing a layer would drop other units than the first pass did.
            raise ValueError("grad_checkpoint and dropout exclude each other")
        if self.resume and self.force:
            raise ValueError("resume and force exclude each other")

    def _differs(self, *names: str) -> bool:
        """Return True if one of these settings is not at its default."""
        return any(getattr(self, name) != default_of(TrainConfig, name) for name in names)

    def _apply_preset(self) -> None:
        for name, value in PRESETS.get(self.preset, {}).items():
            given = getattr(self, name)
            if given not in (value, default_of(TrainConfig, name)):
                raise ValueError(f"preset {self.preset!r} sets {name} to {value}, and {name} is {given}: leave one out")
            force_setattr(self, name, value)

    def step_seed(self, step: int) -> int:
        """Return the seed of a step. It depends on run and step, so a resumed run draws what a whole one draws."""
        return self.seed * SEED_STRIDE + step

    @property
    def scale(self) -> float:
        """The factor of the low-rank update, as mlx-lm names it."""
        return self.alpha / self.rank

    def inputs(self) -> list[Path]:
        """Return the files and folders that training reads."""
        paths = [self.model, self.data / files.TRAIN, self.data / files.VALID]
        if self.objective == "sft":
            return paths
        if not self.teacher:
            return [*paths, self.data / files.LOGPROBS / files.LOGPROBS_MANIFEST]
        folder = local_folder(self.teacher, self.model)
        return [*paths, *self.teacher_context.inputs(), *([folder] if folder else [])]

    def outputs(self) -> list[Path]:
        """Return the files that later stages read."""
        return [self.adapter / files.ADAPTER_WEIGHTS, self.adapter / files.ADAPTER_CONFIG]


class TrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a finished run. Losses and accuracies are over the answer tokens of valid.jsonl."""

    adapter: Path
    """Folder of the best adapter; its `last/` holds the last one."""
    n_trainable: int
    n_parameters: int
    steps: int
    epochs: float
    stopped: str
    """`finished`, `time budget` or `early stop`."""
    best_step: int
    valid_loss_before: float
    valid_loss: float
    """Loss of the best adapter."""
    valid_accuracy_before: float
    valid_accuracy: float
    valid_kl_before: float | None = None
    """KL(teacher || student), if the objective measures it."""
    valid_kl: float | None = None
    n_train_rows: int
    n_valid_rows: int
    n_valid_tokens: int
    supervised_tokens: int
    """Answer tokens trained on, repeats included."""
    supervised_tokens_per_second: float
    """Over the steps, without evaluations."""
    peak_bytes: int
    """Peak memory of MLX."""
    estimated_bytes: int
    """The memory plan's estimate of it; 0 for an unknown architecture."""
    seconds: float
    """The whole run, evaluations and resumed parts included."""

    def summary(self) -> str:
        """Return the main figures in one line."""
        kl = ""
        if self.valid_kl is not None:
            kl = f"valid KL {self.valid_kl_before:.4f} → {self.valid_kl:.4f}, "
        return (
            f"{kl}valid loss {self.valid_loss_before:.3f} → {self.valid_loss:.3f}, accuracy "
            f"{format_percent(self.valid_accuracy_before)} → {format_percent(self.valid_accuracy)} "
            f"({self.epochs:g} epochs)"
        )
