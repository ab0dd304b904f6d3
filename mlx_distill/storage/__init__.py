"""Journals, atomic writes, locks, file names, file states, and the data that is installed with the package."""
