"""OpenAI-compatible HTTP over the engine, for one machine."""
