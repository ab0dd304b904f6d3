"""A student from the Hub, a folder, a GGUF file or the sample to an MLX model."""
