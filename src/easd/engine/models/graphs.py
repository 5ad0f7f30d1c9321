"""CUDA graphs: one launch in place of the hundreds of small kernels of a forward.

With a batch of a few texts, a GPU spends most of a forward waiting for Python to launch the next
kernel. A graph records the kernels of one call and launches them at once. It reads and writes the
addresses of that call, so shapes recur or are padded, and whatever else the call used has to stay
where it was.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cache
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

_CALLS_BEFORE = 2
"""Calls of one kind before it is recorded, which takes as long as two or three calls."""

Forward = Callable[..., Tensor]


def serve(device: torch.device) -> bool:
    """Whether forwards on a device are recorded. EASD_GRAPHS=0 turns graphs off."""
    return device.type == "cuda" and os.environ.get("EASD_GRAPHS") != "0"


class Graphs:
    """Recorded calls of functions of tensors, by what distinguishes the calls."""

    def __init__(self) -> None:
        self._calls: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, Forward] = {}
        self._place: Hashable = None

    def run(self, kind: Hashable, function: Forward, *given: Tensor, place: Hashable) -> Tensor:
        """`function(*given)`, which may be called more than once.

        Args:
            kind: equal for calls that differ only in the values of `given`.
            place: equal as long as all other tensors that calls use stay where they are.
        """
        if place != self._place:
            self.clear()
            self._place = place
        kind = kind, tuple(tensor.shape for tensor in given)
        recorded = self._recorded.get(kind)
        if recorded is None:
            self._calls[kind] += 1
            if self._calls[kind] <= _CALLS_BEFORE:
                return function(*given)
            recorded = self._recorded[kind] = _recorded(function, given)
        return recorded(*given)

    def clear(self) -> None:
        """Forgets all calls, since something that they used has moved."""
        self._calls.clear()
        self._recorded.clear()


def _recorded(function: Forward, given: tuple[Tensor, ...]) -> Forward:
    """`function`, recorded with memory of its own for what it is given; itself if it cannot be."""
    inputs = [tensor.clone() for tensor in given]
    try:
        replay = record(function, inputs)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(f"decoding without a CUDA graph ({reason}), which is slower", stacklevel=2)
        return function

    def replayed(*given: Tensor) -> Tensor:
        for held, tensor in zip(inputs, given, strict=True):
            held.copy_(tensor)
        return replay().clone()  # The next replay overwrites its output.

    return replayed


def record(function: Forward, given: list[Tensor]) -> Callable[[], Tensor]:
    """Records `function(*given)` as a CUDA graph; returns what replays it on the same memory."""
    graph, stream, current = torch.cuda.CUDAGraph(), _stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        function(*given)  # A first call allocates what later ones keep.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            output = function(*given)
        finally:
            graph.capture_end()
    current.wait_stream(stream)

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


@cache
def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


class Structure:
    """What a recorded forward of a model relies on besides values: addresses, modules, hooks."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        parts = [d for m in modules for d in (m._parameters, m._buffers, m._modules)]
        hooks = [d for m in modules for d in (m._forward_hooks, m._forward_pre_hooks)]
        # A replaced `forward` is one entry more among a module's variables.
        self._sized = [*parts, *hooks, *map(vars, modules)]
        self._sizes = list(map(len, self._sized))
        self._filled = list(filter(None, parts))
        self._held = list(_values(self._filled))
        self._tensors = [held for held in self._held if isinstance(held, Tensor)]
        self._addresses = list(map(Tensor.data_ptr, self._tensors))

    def has_changed(self) -> bool:
        """Whether any of it is not what it was at the start."""
        return (
            list(map(len, self._sized)) != self._sizes
            or not all(map(is_, _values(self._filled), self._held))
            or list(map(Tensor.data_ptr, self._tensors)) != self._addresses
        )


def _values(parts: Iterable[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, parts))
