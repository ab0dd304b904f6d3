"""Base and distilled side by side: figures on held-out rows, and answers to test prompts."""
