"""Quantities of distributions over the vocabulary (last axis)."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from easd.core import kernels

_CHUNK = 64
_SLICE = 16_384


def entropy(probs: Tensor) -> Tensor:
    """Shannon entropy in nats over the full vocabulary; [..., V] -> [...].

    Summed in slices of fixed size: temporaries stay in cache, and a row's sum does not depend on
    the number of rows. `torch.special.entr` takes twice as long.
    """
    tiny = torch.finfo(probs.dtype).tiny
    slices = probs.split(_SLICE, -1) if probs.shape[-1] > _SLICE else (probs,)
    parts = [part.clamp_min(tiny).log_().mul_(part).sum(-1) for part in slices]
    return 0 - reduce(torch.add, parts)  # unary minus would turn 0 into -0


def top_tokens(probs: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Values and indices of the n largest entries, [..., min(n, V)].

    Selecting from a whole vocabulary row is slow on a CPU. The n largest entries lie in the n
    chunks with the largest maxima, so only those are searched.
    """
    vocab_size = probs.shape[-1]
    n = min(n, vocab_size)
    chunks = vocab_size // _CHUNK
    if chunks <= 4 * n:
        return probs.topk(n, dim=-1)
    body = probs[..., : chunks * _CHUNK].unflatten(-1, (chunks, _CHUNK))
    best = body.amax(-1).topk(n, dim=-1).indices  # [..., n]
    offsets = torch.arange(_CHUNK, device=probs.device)
    candidates = (best[..., None] * _CHUNK + offsets).flatten(-2)
    if chunks * _CHUNK < vocab_size:
        tail = torch.arange(chunks * _CHUNK, vocab_size, device=probs.device)
        candidates = torch.cat([candidates, tail.expand(*candidates.shape[:-1], -1)], dim=-1)
    values, order = probs.gather(-1, candidates).topk(n, dim=-1)
    return values, candidates.gather(-1, order)


def shared_top_tokens(draft_probs: Tensor, target_probs: Tensor, n: int) -> Tensor:
    """The number of tokens among the n most probable of both; int64 [...].

    Tokens of probability zero do not count: truncated rows would otherwise share arbitrary ones.
    """
    draft_values, draft_top = top_tokens(draft_probs, n)
    target_values, target_top = top_tokens(target_probs, n)
    same = draft_top[..., :, None] == target_top[..., None, :]
    possible = (draft_values > 0)[..., :, None] & (target_values > 0)[..., None, :]
    return (same & possible).sum((-1, -2))


def residual(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """norm(max(0, p - q)), or p where that is zero everywhere (then no token is ever rejected)."""
    positive = (target_probs - draft_probs).clamp_min(0)
    total = positive.sum(-1, keepdim=True)
    return torch.where(total > 0, positive / total, target_probs)


def most_probable(values: Tensor) -> Tensor:
    """All probability on the largest entry, [..., V] -> [..., V]."""
    return torch.zeros_like(values).scatter_(-1, values.argmax(-1, keepdim=True), 1.0)


def exclude(probs: Tensor, token: Tensor) -> Tensor:
    """`probs` [..., V] with `token` [...] zeroed, renormalised; unchanged where nothing is left."""
    rest = probs.scatter(-1, token[..., None], 0.0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total, probs)


def sum_of_odds(draft_probs: Tensor, target_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(sum of the odds except at the target's top token, that token, its odds); all [..., 1].

    The odds of y are q(y) / (1 - p(y)). At the top token 1 - p would cancel, so the sum of the
    other entries of p replaces it; its odds are infinite or nan where that sum is 0.
    """
    if kernels.usable(target_probs):
        rest, top, top_odds = kernels.sum_of_odds(draft_probs, target_probs)
        return rest[..., None], top[..., None], top_odds[..., None]
    top = target_probs.argmax(-1, keepdim=True)
    others = target_probs.scatter(-1, top, 0.0).sum(-1, keepdim=True)
    odds = (draft_probs / (1 - target_probs)).scatter_(-1, top, 0.0)
    return odds.sum(-1, keepdim=True), top, draft_probs.gather(-1, top) / others


def log(probs: Tensor) -> Tensor:
    """Natural logarithms, finite at zero."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()
