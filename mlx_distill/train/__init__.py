"""Train an adapter on prepared rows: `mlx_distill.train.run.run(TrainConfig(model=..., data=..., adapter=...))`."""

from mlx_distill.train.config import TrainConfig, TrainResult

__all__ = ["TrainConfig", "TrainResult"]
