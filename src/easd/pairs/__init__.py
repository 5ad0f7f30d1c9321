"""The pairs of models this package brings."""
