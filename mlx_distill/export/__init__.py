"""From adapter to elsewhere: a standalone model, a GGUF file, an Ollama model, a repository on the Hub."""

from mlx_distill.export.fuse import FuseConfig, FuseResult, run

__all__ = ["FuseConfig", "FuseResult", "run"]
