"""Which rows a forward multiplies: without padding, and with rows of zeros where that is faster."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from easd.engine.models.packing import spare_rows

# Tokens of padding to a text, on average, from which leaving it out saves more than it costs.
_LEAST_PADDING = 8


class Layout:
    """From the rows of texts [B, T, W] to those that products take, [1, N, W], and back.

    Both are the same tensor [B, T, W] where neither padding nor zeros matter.

    Attributes:
        lengths: the number of tokens of each text, [B], if padding is left out.

    Args:
        shape: (B, T).
        lengths: the number of tokens of each text before padding, [B]; all unless given.
        packed: whether the products' weights are packed.
    """

    def __init__(
        self, shape: Sequence[int], lengths: Sequence[int] | None, *, packed: bool
    ) -> None:
        self._batch, self._length = shape
        self._count = self._batch * self._length
        self._spare = spare_rows(self._count) if packed else 0
        self.lengths = None
        if lengths is None:
            return
        # A text without tokens keeps one of padding: what its slots get must not be another's.
        kept = [max(1, length) for length in lengths]
        if self._count - sum(kept) >= _LEAST_PADDING * self._batch:
            self._spare, self.lengths = 0, kept
            own = torch.arange(self._length) < torch.tensor(kept)[:, None]
            self._kept = own.view(-1).nonzero().squeeze(1)
            self._spread = own.view(-1).cumsum(0) - 1

    def of_products(self, rows: Tensor) -> Tensor:
        """The rows to multiply, of `rows` [B, T, W]."""
        if self.lengths is not None:
            return rows.reshape(1, self._count, -1).index_select(1, self._kept)
        if self._spare:
            return pad(rows.reshape(1, self._count, -1), (0, 0, 0, self._spare))
        return rows

    def of_texts(self, rows: Tensor) -> Tensor:
        """`rows` [B, T, W] of products; padding repeats what its text's last token has."""
        if self.lengths is not None:
            rows = rows.index_select(1, self._spread)
        elif self._spare:
            rows = rows[:, : self._count]
        else:
            return rows
        return rows.view(self._batch, self._length, -1)
