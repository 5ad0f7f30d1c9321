"""CUDA graphs: one launch in place of the hundreds of small kernels of a forward or verification.

With a batch of a few texts, a GPU spends most of a step waiting for Python to launch the next
kernel. A graph records the kernels of one call and launches them at once. It reads and writes the
addresses of that call, so shapes recur or are padded, and whatever else the call used has to stay
where it was.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import cache
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

_MOST_RECORDED = 8  # Each keeps what it is given, such as distributions over a vocabulary.

Function = Callable[..., Any]


def serve(device: torch.device) -> bool:
    """Whether calls on a device are recorded, which EASD_GRAPHS=0 turns off."""
    return device.type == "cuda" and os.environ.get("EASD_GRAPHS") != "0"


class Graphs:
    """Recorded calls of functions, by what distinguishes the calls; only one runs at a time."""

    def __init__(self) -> None:
        self._called: set[Hashable] = set()
        self._recorded: dict[Hashable, Function | None] = {}  # None for what cannot be recorded
        self._place: Hashable = None

    def run(self, kind: Hashable, function: Function, *given: Any, place: Hashable = None) -> Any:
        """`function(*given)`, which may be called more than once.

        Args:
            kind: equal for calls that differ only in the values of the tensors in `given`.
            given: tensors, or dataclasses of tensors and hashable values.
            place: equal as long as all other tensors that calls use stay where they are.
        """
        if place != self._place:
            self.clear()
            self._place = place
        kind = kind, map_tensors(given, lambda tensor: (tensor.shape, tensor.dtype))
        if kind not in self._recorded:
            if kind not in self._called:  # Many are called once; recording takes two calls more.
                self._called.add(kind)
                return function(*given)
            if len(self._recorded) == _MOST_RECORDED:
                oldest = next(iter(self._recorded))
                del self._recorded[oldest]
                self._called.remove(oldest)  # So that kinds that alternate are not all recorded.
            self._recorded[kind] = _recorded(function, given)
        self._recorded[kind] = recorded = self._recorded.pop(kind)  # The last used comes last.
        return (recorded or function)(*given)

    def clear(self) -> None:
        """Forgets all calls, since something that they used has moved."""
        self._called.clear()
        self._recorded.clear()


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """A value with the tensors changed that it holds in tuples, mappings and dataclasses."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(held, change) for held in value)
    if isinstance(value, Mapping):
        return {name: map_tensors(held, change) for name, held in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        held = {f.name: getattr(value, f.name) for f in fields(value)}
        return replace(value, **{name: map_tensors(each, change) for name, each in held.items()})
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of a value, in the order in which `map_tensors` changes them."""
    found: list[Tensor] = []
    map_tensors(value, found.append)
    return found


def _recorded(function: Function, given: tuple[Any, ...]) -> Function | None:
    """`function`, recorded with tensors of its own for what it is given; None if it cannot be."""
    inputs = map_tensors(given, Tensor.clone)
    held = tensors_of(inputs)
    try:
        replay = record(function, inputs)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(f"decoding without a CUDA graph ({reason}), which is slower", stacklevel=2)
        return None

    def replayed(*given: Any) -> Any:
        for ours, theirs in zip(held, tensors_of(given), strict=True):
            ours.copy_(theirs)
        return map_tensors(replay(), Tensor.clone)  # The next replay overwrites its output.

    return replayed


def record(function: Function, given: tuple[Any, ...]) -> Callable[[], Any]:
    """Records `function(*given)` as a CUDA graph; returns what replays it on the same tensors.

    Each graph keeps memory of its own: memory that graphs share is freed under them as soon as all
    that were recorded first are gone.
    """
    graph, stream, current = torch.cuda.CUDAGraph(), _stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream), _uncollected():
        function(*given)  # A first call on a stream allocates what later ones keep.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            output = function(*given)
        finally:
            graph.capture_end()
            current.wait_stream(stream)

    def replay() -> Any:
        graph.replay()
        return output

    return replay


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps Python from collecting garbage: to destroy an old graph would spoil a recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@cache
def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


class Structure:
    """What a recorded forward of a model relies on besides values: addresses, modules, hooks.

    Attributes:
        runs_python: a module has a hook or a `forward` of its own, whose Python a graph would skip.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        parts = [d for m in modules for d in (m._parameters, m._buffers, m._modules)]
        hooks = [d for m in modules for d in (m._forward_hooks, m._forward_pre_hooks)]
        # A replaced `forward` is one entry more among a module's variables.
        self._sized = [*parts, *hooks, *map(vars, modules)]
        self.runs_python = any(hooks) or any("forward" in vars(m) for m in modules)
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
