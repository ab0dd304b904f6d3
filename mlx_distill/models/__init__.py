"""Students and local teachers: load, tokenize, generate, score, and the adapter switch."""
