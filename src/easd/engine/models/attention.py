"""Scaled dot-product attention on grouped heads without repeating keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_MOST_FOLDED = 16  # tokens; grouped attention is as fast beyond


def folds(length: int, groups: int) -> bool:
    """Whether to fold a group's heads into queries of one head, which reads keys only once."""
    return groups > 1 and length <= _MOST_FOLDED


def folded_mask(mask: Tensor, groups: int) -> Tensor:
    """A mask [B, 1, T, S], or [B, 1, groups * T, S] for folded queries; for T = 1 it broadcasts."""
    length = mask.shape[2]
    return mask.repeat(1, 1, groups, 1) if length > 1 and folds(length, groups) else mask


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """Scaled dot-product attention [B, T, H, D] of a query [B, H, T, D].

    Args:
        query: with a multiple of the heads of `key`.
        key, value: [B, heads, S, D].
        mask: added to the scores, by `folded_mask`.
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


class Attention:
    """The attention of a forward's layers: of a batch of texts, or of one text after the other.

    Args:
        mask: added to the scores, [B, 1, T, S].
        groups: query heads per head of the keys.
        lengths: the number of tokens of each text, [B], to leave out padding; None for a batch.
    """

    def __init__(self, mask: Tensor, groups: int, lengths: Sequence[int] | None) -> None:
        self._lengths = lengths
        if lengths is None:
            self._masks = [folded_mask(mask, groups)]
            return
        # No text's own tokens lie in the last slots, which only padding of that number reaches.
        spare = mask.shape[3] - mask.shape[2]
        self._masks = [
            folded_mask(mask[text : text + 1, :, :length, : spare + length], groups)
            for text, length in enumerate(lengths)
        ]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Of a query [B, H, T, D], [B, T, H * D], or [1, N, H * D] for the texts one by one."""
        if self._lengths is None:
            attended = attend(query, key, value, self._masks[0], scale)
            return attended.reshape(*attended.shape[:2], -1)
        each = []
        for text, (length, mask) in enumerate(zip(self._lengths, self._masks, strict=True)):
            one, keys = slice(text, text + 1), mask.shape[3]
            of_text = query[one, :, :length], key[one, :, :keys], value[one, :, :keys]
            each.append(attend(*of_text, mask, scale).reshape(1, length, -1))
        return torch.cat(each, 1)
