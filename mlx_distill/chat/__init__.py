"""The conversation with a student on the terminal."""
