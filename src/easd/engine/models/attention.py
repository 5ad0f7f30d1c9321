"""Scaled dot-product attention on grouped heads without repeating keys and values."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_MOST_FOLDED = 16  # tokens; grouped attention is as fast beyond


def folds(length: int, groups: int) -> bool:
    """Whether to fold a group's heads into queries of one head, which reads keys only once."""
    return groups > 1 and length <= _MOST_FOLDED


def folded_mask(mask: Tensor, groups: int) -> Tensor:
    """The mask [B, 1, groups * T, S] of folded queries; for T = 1 it broadcasts."""
    return mask.repeat(1, 1, groups, 1) if mask.shape[2] > 1 else mask


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """Scaled dot-product attention [B, T, H, D] of a query [B, H, T, D].

    Args:
        query: with a multiple of the heads of `key`.
        key, value: [B, heads, S, D].
        mask: added to the scores, [B, 1, T, S]; folded if the query `folds`.
        scale: factor of the scores; None for 1 / sqrt(D).
    """
    batch, heads, length, size = query.shape
    groups = heads // key.shape[1]
    if folds(length, groups):
        query = query.reshape(batch, -1, groups * length, size)
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.reshape(batch, heads, length, -1).transpose(1, 2)
