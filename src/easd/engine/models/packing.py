"""Large linear layers on a CPU, through oneDNN with weights packed once.

Decoding multiplies a large weight with one to a few dozen rows. The plain path repacks the weight
for every product. With a packed weight the product can take a third to a half of the time
(`benchmarks/packing.py`), and scoring five tokens costs little more than scoring one. That holds in
float32 and, on processors with AVX-512, in bfloat16. With AVX2 only, the plain product is faster
for a single row, except onto many columns. The packed weight is a copy, which must not outlive the
model's.

Weights may change in ways that torch does not count: through `.data`, by a merged adapter or a
moving average. Every decode therefore begins by comparing sums over all bits of every row and
column with those of the packed weight, which detects any change between two decodes. Within a
decode, each forward compares the address, torch's count of changes, and 16 adjacent values at one
of 64 places in turn, which detects a change of the whole matrix. More places would each read
another cache line.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from threading import Lock, RLock, get_ident
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
# Below, the fixed cost of a oneDNN call exceeds what packing saves.
_SMALLEST = 2**18 if _AVX2 else 2**16
_TYPICAL_ROWS = 5
_PLACES, _SAMPLED = 64, 16

_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_making_locks = Lock()


class PackedLinears:
    """A context in which a model's large linear layers on a CPU use packed weights.

    One thread at a time may enter a model's context. Other threads that run the model meanwhile,
    and products under autocast, use the layers' own weights.
    """

    def __init__(self, model: nn.Module) -> None:
        with _making_locks:
            self._lock = _locks.setdefault(model, RLock())
        with self._lock:
            self._layers = [layer for layer in model.modules() if _packs(layer)]
            self._packed = [_packed_weight(layer) for layer in self._layers]
        self._turns = count()
        self._replaced: list[tuple[nn.Module, Any]] = []

    def __enter__(self) -> None:
        if not self._layers:
            return
        self._lock.acquire()
        thread, turn = get_ident(), next(self._turns) % _PLACES
        for place, layer in enumerate(self._layers):
            if not _packs(layer):
                continue
            if not self._packed[place].seems_of(layer._parameters["weight"], turn):
                self._packed[place] = _packed_weight(layer)
            forward = partial(_product, layer, self._packed[place].weight, thread)
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


@cache
def packs_dtype(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies with packed weights of a dtype."""
    if not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _packs(layer: nn.Module) -> bool:
    """Whether a layer is a plain product with a large weight on a CPU.

    A replaced `forward` or a hook, such as an offloader's or a pruner's, may compute something
    else.
    """
    if type(layer) is not nn.Linear or "forward" in layer.__dict__ or layer._forward_pre_hooks:
        return False
    weight = layer._parameters.get("weight")
    return (
        weight is not None
        and weight.device.type == "cpu"
        and weight.is_contiguous()
        and weight.numel() >= _SMALLEST
        and packs_dtype(weight.dtype)
    )


def is_packed(layer: nn.Module) -> bool:
    """Whether a layer's `forward` is the product with its packed weight."""
    return getattr(layer.__dict__.get("forward"), "func", None) is _product


def spare_rows(count: int) -> int:
    """How many rows of zeros to add to `count` rows, since products with more are faster.

    With AVX-512, oneDNN multiplies five rows in less time than one or two; three and four take
    about as long (`benchmarks/packing.py`).
    """
    return _TYPICAL_ROWS - count if count < 3 and not _AVX2 else 0


def _product(layer: Any, packed: Tensor, thread: int, rows: Tensor) -> Tensor:
    ours = get_ident() == thread and rows.dtype == packed.dtype
    one = _AVX2 and rows.numel() == layer.in_features >= layer.out_features
    if not ours or one or torch.is_autocast_enabled("cpu"):
        return linear(rows, layer.weight, layer.bias)
    return torch.ops.mkldnn._linear_pointwise(rows, packed, layer.bias, "none", [], "")


@dataclass(frozen=True, slots=True)
class _Packed:
    """A packed weight, with checksums of the layer's weight that it was made from."""

    weight: Tensor
    place: tuple[int, int]
    values: Any  # a NumPy view of some values of the layer's own weight
    samples: list[bytes]
    sums: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, weight: Tensor) -> _Packed:
        values = _bits(weight).view(-1)
        values = values[: values.numel() // _PLACES * _PLACES].view(_PLACES, -1)[:, :_SAMPLED]
        values = values.numpy()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _TYPICAL_ROWS)
        samples = [window.tobytes() for window in values]
        return cls(packed, _place(weight), values, samples, _sums(weight))

    def seems_of(self, weight: Any, turn: int) -> bool:
        """Whether the weight is the packed one, by a sample of its values."""
        same = self.values[turn].tobytes() == self.samples[turn]
        return same and self.place == _place(weight)

    def is_of(self, weight: Tensor) -> bool:
        """Whether the weight is the packed one, by all its bits."""
        if self.place != _place(weight):
            return False
        return all(map(torch.equal, self.sums, _sums(weight)))


_packed: WeakKeyDictionary[nn.Module, _Packed] = WeakKeyDictionary()


def _packed_weight(layer: nn.Module) -> _Packed:
    """The packed weight, repacked if the layer's has changed."""
    weight, held = layer.weight, _packed.get(layer)
    assert isinstance(weight, Tensor)
    if held is None or not held.is_of(weight):
        held = _packed[layer] = _Packed.of(weight)
    return held


def _place(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _sums(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of a weight's bits over each row and each column, which rounding cannot hide."""
    bits, together = _bits(weight), 8 // weight.element_size()
    if weight.shape[1] % together == 0 and weight.storage_offset() % together == 0:
        bits = bits.view(torch.int64)
    return bits.sum(1), bits.sum(0)


def _bits(weight: Tensor) -> Tensor:
    return weight.detach().view({2: torch.int16, 4: torch.int32}[weight.element_size()])
