"""Integrations: transformers, vLLM, lm-evaluation-harness and inspect-ai."""
