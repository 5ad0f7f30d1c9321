"""A causal language model over slots of a batch."""
