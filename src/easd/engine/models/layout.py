"""Which rows a forward multiplies: without padding, and with rows of zeros where that is faster."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from easd.engine.models.packing import spare_rows
from easd.engine.models.upload import upload

# Below this share of padding, leaving it out costs more than it saves.
_LEAST_PADDING = 1 / 8


class Layout:
    """From the rows of texts [B, T, W] to those that products take, [1, N, W], and back.

    Prompts of different lengths are padded for attention, which is a small part of a forward, and
    not for products. Both are the same tensor [B, T, W] where neither padding nor zeros matter.

    Args:
        shape: (B, T).
        lengths: the number of tokens of each text before padding, [B]; all unless given.
        packed: whether the products' weights are packed.
    """

    def __init__(
        self,
        shape: Sequence[int],
        lengths: Sequence[int] | None,
        device: torch.device,
        *,
        packed: bool,
    ) -> None:
        self._batch, self._length = shape
        self._count = self._batch * self._length
        self._spare = spare_rows(self._count) if packed else 0
        self._kept = self._spread = None
        # A text without tokens keeps one of padding: what its slots get must not be another's.
        kept = [max(1, length) for length in lengths or ()]
        if lengths is not None and sum(kept) <= (1 - _LEAST_PADDING) * self._count:
            self._spare = 0
            places = range(0, self._count, self._length)
            self._kept = upload(
                [first + t for first, n in zip(places, kept, strict=True) for t in range(n)], device
            )
            ends, begin = [], 0
            for n in kept:
                ends += [begin + min(t, n - 1) for t in range(self._length)]
                begin += n
            self._spread = upload(ends, device)

    def of_products(self, rows: Tensor) -> Tensor:
        """The rows to multiply, of `rows` [B, T, W]."""
        if self._kept is not None:
            return rows.reshape(1, self._count, -1).index_select(1, self._kept)
        if self._spare:
            return pad(rows.reshape(1, self._count, -1), (0, 0, 0, self._spare))
        return rows

    def of_texts(self, rows: Tensor) -> Tensor:
        """`rows` [B, T, W] of products; padding repeats what its text's last token has."""
        if self._spread is not None:
            rows = rows.index_select(1, self._spread)
        elif self._spare:
            rows = rows[:, : self._count]
        else:
            return rows
        return rows.view(self._batch, self._length, -1)
