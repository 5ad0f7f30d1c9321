"""The embedded pairs of models, and loading of others."""
