"""Training objectives, by name. A new one is a file with a subclass of `Objective`, and its line in `OBJECTIVES`."""

from collections.abc import Callable, Mapping

from mlx_distill.models.load import Student
from mlx_distill.train.config import TrainConfig
from mlx_distill.train.objectives.base import Objective
from mlx_distill.train.objectives.kd import kd
from mlx_distill.train.objectives.on_policy import OnPolicy
from mlx_distill.train.objectives.sft import Sft

__all__ = ["OBJECTIVES", "Objective", "Objectives"]

Objectives = Mapping[str, Callable[[TrainConfig, Student], Objective]]
OBJECTIVES: Objectives = {"sft": Sft, "kd": kd, "on-policy": OnPolicy}
