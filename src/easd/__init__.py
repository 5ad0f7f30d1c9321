"""Entropy-aware speculative decoding."""
