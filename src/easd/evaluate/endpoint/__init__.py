"""Evaluates OpenAI-compatible servers."""
