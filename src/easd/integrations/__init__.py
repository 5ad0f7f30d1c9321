"""EASD inside other people's decoders."""
