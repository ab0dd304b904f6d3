"""GGUF files of the llama and qwen2 families: reading, tensor names, and the tokenizer."""
