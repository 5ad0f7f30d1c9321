"""The mathematics: rules, their laws, verification and sampling, on plain tensors."""
