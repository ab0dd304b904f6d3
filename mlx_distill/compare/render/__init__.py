"""Renderers of a report: terminal, Markdown and HTML. They know tables, not metrics."""
