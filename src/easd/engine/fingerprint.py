"""What a run says of its models: names, sizes, and short hashes that tell them apart."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from easd.engine.pair import Pair
from easd.engine.settings import Settings
from easd.runs.provenance import environment
from easd.runs.schema import TOP

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


def fingerprints(pair: Pair) -> dict[str, str | None]:
    """Hashes of the pair's weights and tokenizer."""
    return {
        "target": model_fingerprint(pair.target),
        "draft": None if pair.draft is None else model_fingerprint(pair.draft),
        "tokenizer": tokenizer_fingerprint(pair.tokenizer),
    }


def provenance(pair: Pair) -> dict[str, Any]:
    """The models, versions, hardware and checkout of a run, in types that JSON knows."""
    device = pair.target.device
    return {
        "models": {
            "pair": pair.name,
            "dtype": str(pair.target.dtype).removeprefix("torch."),
            "target_parameters": pair.target.num_parameters(),
            "draft_parameters": None if pair.draft is None else pair.draft.num_parameters(),
            "fingerprints": fingerprints(pair),
        },
        **environment(
            threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        ),
    }


def signals_of(settings: Settings) -> dict[str, Any]:
    """Where the signals of the tokens table come from."""
    rule = settings.rule
    greedy = settings.temperature == 0
    raw = rule.needs_raw == "always" or (rule.needs_raw == "greedy" and greedy)
    return {
        "from": "rule" if hasattr(rule, "top_n") else "trace",
        "distribution": "raw" if raw else "sampling",
        "top_n": getattr(rule, "top_n", TOP),
    }
