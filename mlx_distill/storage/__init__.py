"""Journals, atomic writes, file names and file states, and the data that is installed with the package."""
