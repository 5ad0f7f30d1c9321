"""Evaluate what an OpenAI-compatible server writes: no models here."""
