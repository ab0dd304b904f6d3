"""`export` and `push`: a model as a GGUF file, in Ollama, or on the Hugging Face Hub."""
