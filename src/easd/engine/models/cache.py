"""A key-value cache of slots per row, where a slot's index is its position.

A forward writes at each row's offset, so the next one overwrites refused tokens. Nothing is
compacted, and the cache is copied only when its capacity grows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from easd.engine.models.upload import upload

_SMALLEST_CAPACITY = 64
_MOST_GROWTH = 512


@dataclass(slots=True)
class Placement:
    """The slots that the next forward writes, shared by all layers.

    Layers refer to it rather than to their cache, since a reference cycle would keep gigabytes of
    slots alive until garbage collection.
    """

    num_rows: int
    rows: slice = field(default_factory=lambda: slice(0, 0))
    positions: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    every_row: Tensor = field(default_factory=lambda: torch.zeros(0, 1, dtype=torch.long))
    start: int | None = None
    stop: int = 0
    capacity: int = _SMALLEST_CAPACITY


class SlotCache(Cache):
    """Keys and values of all layers for `num_rows` rows; call `place` before each forward."""

    def __init__(self, num_rows: int) -> None:
        self.placement = Placement(num_rows)
        super().__init__(layer_class_to_replicate=partial(SlotLayer, self.placement))  # type: ignore[arg-type]

    def place(self, rows: slice, starts: list[int], length: int, device: torch.device) -> None:
        """Sets the slots of the next forward: `length` tokens of `rows`, from `starts` on."""
        placement = self.placement
        first = upload(starts, device)
        placement.rows = rows
        placement.positions = first[:, None] + torch.arange(length, device=device)
        placement.start = starts[0] if len(set(starts)) == 1 else None
        if placement.start is None:
            placement.every_row = torch.arange(len(starts), device=device)[:, None]
        placement.stop = max(starts) + length
        self.reserve(placement.stop)

    def place_anywhere(self, starts: Tensor, length: int) -> None:
        """`place` for the first rows, from `starts` [b] on a device, with a view of all slots.

        The caller reserves the slots.
        """
        placement = self.placement
        placement.rows = slice(0, len(starts))
        placement.positions = starts[:, None] + torch.arange(length, device=starts.device)
        placement.every_row = torch.arange(len(starts), device=starts.device)[:, None]
        placement.start, placement.stop = None, placement.capacity

    def reserve(self, length: int) -> None:
        """Makes the next growth large enough for `length` slots."""
        placement = self.placement
        while placement.capacity < length:
            placement.capacity += min(placement.capacity, _MOST_GROWTH)

    def slots(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the placed rows, [b, heads, S, dim], for the caller to write.

        Args:
            like: the values to be written, [b, T, heads, dim].
        """
        while len(self.layers) <= layer:
            self.layers.append(self.layer_class_to_replicate())  # type: ignore[misc]
        held = self.layers[layer]
        assert isinstance(held, SlotLayer)
        return held.slots(like.transpose(1, 2))

    def move(self, source: int, target: int, length: int) -> None:
        """Copies one row's first `length` slots to another row."""
        for held in self._held():
            held[target, :, :length] = held[source, :, :length]

    def swap(self, one: int, other: int) -> None:
        """Exchanges the slots of two rows."""
        for held in self._held():
            held[[one, other]] = held[[other, one]]

    def clear(self, row: int) -> None:
        """Zeroes a row's slots, since NaN there would pass through the mask into its next text."""
        for held in self._held():
            held[row].zero_()

    @property
    def nbytes(self) -> int:
        """Size of all slots."""
        return sum(held.nbytes for held in self._held())

    def _held(self) -> Iterator[Tensor]:
        for layer in self.layers:
            assert isinstance(layer, SlotLayer)
            for held in (layer.keys, layer.values):
                if held is not None:
                    yield held


class SlotLayer(CacheLayerMixin):
    """One layer's slots, [num_rows, heads, capacity, dim]."""

    is_sliding = False

    def __init__(self, placement: Placement) -> None:
        super().__init__()
        self.placement = placement

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes [b, heads, T, dim] to the placed slots; returns the rows up to the last slot."""
        self.keys = self._with_room(self.keys, key_states)
        self.values = self._with_room(self.values, value_states)
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def slots(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """As `SlotCache.slots`, for values like [b, heads, T, dim]."""
        self.keys, self.values = (
            self._with_room(self.keys, like),
            self._with_room(self.values, like),
        )
        rows, stop = self.placement.rows, self.placement.stop
        return self.keys[rows, :, :stop], self.values[rows, :, :stop]

    def _with_room(self, held: Tensor | None, like: Tensor) -> Tensor:
        placement = self.placement
        if held is not None and held.shape[2] >= placement.stop:
            return held
        _, heads, _, dim = like.shape
        grown = like.new_zeros(placement.num_rows, heads, placement.capacity, dim)
        if held is not None:
            grown[:, :, : held.shape[2]] = held
        return grown

    def _write(self, held: Tensor, states: Tensor) -> Tensor:
        placement = self.placement
        window = held[placement.rows]
        if placement.start is not None:
            window[:, :, placement.start : placement.start + states.shape[2]] = states
            return window[:, :, : placement.stop]
        rows, positions = placement.every_row, placement.positions
        if positions.device != held.device:  # The layers may lie on several GPUs.
            rows, positions = rows.to(held.device), positions.to(held.device)
        if held.is_cuda:  # A single kernel; on a CPU it takes up to four times as long.
            window.scatter_(2, positions[:, None, :, None].expand_as(states), states)
        else:
            window[rows, :, positions] = states.transpose(1, 2)
        return window[:, :, : placement.stop]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Does nothing, since the first `update` allocates."""

    def get_seq_length(self) -> int:
        """The number of slots up to the end of the last placement."""
        return self.placement.stop

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that `update` returns."""
        return self.placement.stop, 0

    def get_max_length(self) -> int:
        """-1, for no limit."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.20
