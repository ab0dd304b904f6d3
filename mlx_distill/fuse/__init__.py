"""`fuse`: an adapter added into a standalone model, and verified."""

from mlx_distill.fuse.config import FuseConfig, FuseResult

__all__ = ["FuseConfig", "FuseResult"]
