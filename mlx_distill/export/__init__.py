"""A fused model elsewhere: GGUF, Ollama, the Hugging Face Hub."""
