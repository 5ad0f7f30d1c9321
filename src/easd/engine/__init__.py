"""The decoder over Hugging Face models."""
