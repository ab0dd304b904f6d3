"""Prompts to teacher records: `mlx_distill.collect.run.run(CollectConfig(...))`."""
