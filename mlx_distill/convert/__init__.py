"""`convert`: a student from the Hub, a folder, a GGUF file or the sample to an MLX model folder."""

from mlx_distill.convert.config import ConvertConfig, ConvertResult

__all__ = ["ConvertConfig", "ConvertResult"]
