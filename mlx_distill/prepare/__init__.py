"""Teacher records to rows: what is complete, split by family, measured in the student's tokens."""
