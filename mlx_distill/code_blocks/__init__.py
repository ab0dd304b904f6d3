"""Fenced code blocks of an answer: find them (blocks), check their syntax (syntax), run Python (execution)."""

from mlx_distill.code_blocks.blocks import CodeBlock, code_blocks

__all__ = ["CodeBlock", "code_blocks"]
