"""Short hashes that tell models and tokenizers apart."""

from __future__ import annotations

import hashlib
import json

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAMPLE = 1024


def model_fingerprint(model: PreTrainedModel) -> str:
    """A hash over every parameter's name, shape and a sample of its values.

    The sample (at most 1,024 values a parameter, evenly spaced) makes it a matter of a second for
    large models too. Values are compared as bfloat16, so that one checkpoint hashes alike whatever
    dtype it is loaded in.
    """
    digest = hashlib.blake2b(digest_size=12)
    for name, values in sorted(model.state_dict().items()):
        flat = values.detach().reshape(-1)
        stride = max(1, flat.numel() // _SAMPLE)
        sample = flat[::stride][:_SAMPLE].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {tuple(values.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash over the vocabulary and the chat template."""
    what = [sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]
    return hashlib.blake2b(json.dumps(what).encode(), digest_size=12).hexdigest()
