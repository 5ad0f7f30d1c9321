"""Float32 linear layers on a CPU, through oneDNN with weights packed once.

Decoding multiplies a large weight with one to a few dozen rows. The plain float32 path repacks the
weight for every product; with a weight packed beforehand the product takes a third to a half of the
time (`benchmarks/packing.py`), and scoring five tokens costs little more than scoring one. The
model's own weight is left as it is; the packed one is a copy, which must not outlive it.

Weights may change in ways that torch counts nowhere: through `.data`, by a merged adapter or a
moving average. So every decode begins by comparing sums over all bits of every row and column with
those of the weight that was packed: whatever was changed between two decodes, however little, is
seen. Within a decode each forward compares the address, torch's own count of changes, and 64 values
spread over the weight, which any change of the whole matrix alters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from threading import Lock, RLock, get_ident
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

# Below this the fixed cost of a oneDNN call exceeds what packing saves.
_SMALLEST = 2**16
_TYPICAL_ROWS = 5
_SAMPLED = 64

_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_making_locks = Lock()


class PackedLinears:
    """A context in which a model's large float32 linear layers on a CPU use packed weights.

    One thread at a time is in the context of a model. Others that run the model itself meanwhile,
    and products under autocast, use the layers' own weights.
    """

    def __init__(self, model: nn.Module) -> None:
        with _making_locks:
            self._lock = _locks.setdefault(model, RLock())
        with self._lock:
            self._layers = [layer for layer in model.modules() if _packs(layer)]
            for layer in self._layers:
                _packed_weight(layer, thoroughly=True)
        self._replaced: list[tuple[nn.Module, Any]] = []

    def __enter__(self) -> None:
        if not self._layers:
            return
        self._lock.acquire()
        for layer in self._layers:
            if _packs(layer):
                forward = partial(_product, layer, _packed_weight(layer), get_ident())
                layer.__dict__["forward"] = forward
                self._replaced.append((layer, forward))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._layers:
            return
        for layer, forward in self._replaced:
            if layer.__dict__.get("forward") is forward:
                del layer.__dict__["forward"]
        self._replaced.clear()
        self._lock.release()


def _packs(layer: nn.Module) -> bool:
    """Whether a layer's product is nothing but that with a large float32 weight on a CPU.

    A `forward` or a hook of someone else's, such as an offloader's or a pruner's, may compute
    another product or another weight.
    """
    if type(layer) is not nn.Linear or "forward" in layer.__dict__ or layer._forward_pre_hooks:
        return False
    weight = layer._parameters.get("weight")
    return (
        weight is not None
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and weight.is_contiguous()
        and weight.numel() >= _SMALLEST
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def _product(layer: Any, packed: Tensor, thread: int, rows: Tensor) -> Tensor:
    ours = get_ident() == thread and rows.dtype == torch.float32
    if not ours or torch.is_autocast_enabled("cpu"):
        return linear(rows, layer.weight, layer.bias)
    return torch.ops.mkldnn._linear_pointwise(rows, packed, layer.bias, "none", [], "")


@dataclass(frozen=True, slots=True)
class _Packed:
    """A packed weight, and what tells whether the layer's own is still the one it was made of."""

    weight: Tensor
    place: tuple[int, int]
    values: Any  # a NumPy view of some values of the layer's own weight
    sample: bytes
    sums: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, weight: Tensor) -> _Packed:
        flat = weight.detach().view(-1)
        values = flat[:: flat.numel() // _SAMPLED].numpy()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _TYPICAL_ROWS)
        return cls(packed, _place(weight), values, values.tobytes(), _sums(weight))

    def is_of(self, weight: Tensor, *, thoroughly: bool) -> bool:
        if self.place != _place(weight) or self.values.tobytes() != self.sample:
            return False
        return not thoroughly or all(map(torch.equal, self.sums, _sums(weight)))


_packed: WeakKeyDictionary[nn.Module, _Packed] = WeakKeyDictionary()


def _packed_weight(layer: nn.Module, *, thoroughly: bool = False) -> Tensor:
    """The packed weight, packed again if the layer's own has changed since."""
    weight, held = layer.weight, _packed.get(layer)
    assert isinstance(weight, Tensor)
    if held is None or not held.is_of(weight, thoroughly=thoroughly):
        held = _packed[layer] = _Packed.of(weight)
    return held.weight


def _place(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _sums(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of a weight's bits over each row and each column: no rounding hides a small change."""
    two_by_two = weight.shape[1] % 2 == 0 and weight.storage_offset() % 2 == 0
    bits = weight.detach().view(torch.int64 if two_by_two else torch.int32)
    return bits.sum(1), bits.sum(0)
