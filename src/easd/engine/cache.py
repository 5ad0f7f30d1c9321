"""A key-value cache of slots: every row of the batch owns its own, and slot index is position.

A forward writes at each row's own offset; refused tokens are simply overwritten by the next
forward. Nothing is ever compacted, and the cache is copied only when its capacity grows.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_SMALLEST_CAPACITY = 64


class SlotCache(Cache):
    """Keys and values of all layers for `num_rows` rows.

    Attention passes no positions, so the caller names them with `place` before each forward.
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.rows = slice(0, 0)
        self.positions = torch.zeros(0, 0, dtype=torch.long)
        self.start: int | None = None
        self.stop = 0
        self.capacity = _SMALLEST_CAPACITY
        super().__init__(layer_class_to_replicate=partial(SlotLayer, self))  # type: ignore[arg-type]

    def place(self, rows: slice, starts: list[int], length: int, device: torch.device) -> None:
        """Says where the next forward writes: `length` tokens from `starts` on, for `rows`."""
        first = torch.tensor(starts, device=device)
        self.rows = rows
        self.positions = first[:, None] + torch.arange(length, device=device)
        self.start = starts[0] if len(set(starts)) == 1 else None
        self.stop = max(starts) + length
        while self.capacity < self.stop:
            self.capacity *= 2

    def move(self, source: int, target: int, length: int) -> None:
        """Copies one row's first `length` slots to another row."""
        for layer in self.layers:
            assert isinstance(layer, SlotLayer)
            for held in (layer.keys, layer.values):
                assert held is not None
                held[target, :, :length] = held[source, :, :length]


class SlotLayer(CacheLayerMixin):
    """One layer's slots, [num_rows, heads, capacity, dim]."""

    is_sliding = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self.cache = cache

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes [b, heads, T, dim] at the placed slots; returns the rows up to the longest."""
        self.keys = self._with_room(self.keys, key_states)
        self.values = self._with_room(self.values, value_states)
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _with_room(self, held: Tensor | None, like: Tensor) -> Tensor:
        cache = self.cache
        if held is not None and held.shape[2] >= cache.stop:
            return held
        _, heads, _, dim = like.shape
        grown = like.new_zeros(cache.num_rows, heads, cache.capacity, dim)
        if held is not None:
            grown[:, :, : held.shape[2]] = held
        return grown

    def _write(self, held: Tensor, states: Tensor) -> Tensor:
        cache = self.cache
        window = held[cache.rows]
        if cache.start is not None:
            window[:, :, cache.start : cache.start + states.shape[2]] = states
        else:
            row = torch.arange(states.shape[0], device=states.device)[:, None]
            window[row, :, cache.positions] = states.transpose(1, 2)
        return window[:, :, : cache.stop]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the first `update` allocates."""

    def get_seq_length(self) -> int:
        """Slots that the last placement reaches."""
        return self.cache.stop

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that `update` returns."""
        return self.cache.stop, 0

    def get_max_length(self) -> int:
        """No limit: the slots grow."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.20
