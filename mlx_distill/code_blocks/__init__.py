"""Fenced code blocks of an answer: find them (blocks), check their syntax (syntax), run Python (execution)."""
