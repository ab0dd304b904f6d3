"""Store a local teacher's log-probabilities: `mlx_distill.logprobs.run.run(LogprobsConfig(teacher=..., ...))`."""

from mlx_distill.logprobs.config import LogprobsConfig, LogprobsResult

__all__ = ["LogprobsConfig", "LogprobsResult"]
