"""Float32 linear layers on a CPU, through oneDNN with weights packed once.

Decoding multiplies a large weight with one to a few dozen rows. The plain float32 path repacks the
weight for every product; with a weight packed beforehand the product takes a third to a half of the
time (`benchmarks/packing.py`), and scoring five tokens costs little more than scoring one. The
model's own weight is left as it is; the packed one is a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# Below this the fixed cost of a oneDNN call exceeds what packing saves.
_SMALLEST = 2**16
_TYPICAL_ROWS = 5

_packed: WeakKeyDictionary[nn.Linear, tuple[tuple[int, int], Tensor]] = WeakKeyDictionary()


class PackedLinears:
    """A context in which a model's large float32 linear layers on a CPU use packed weights."""

    def __init__(self, model: nn.Module) -> None:
        self._forwards = {
            module: _forward(module)
            for module in model.modules()
            if isinstance(module, nn.Linear) and _packs(module)
        }

    def __enter__(self) -> None:
        for layer, forward in self._forwards.items():
            layer.__dict__["forward"] = forward

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for layer in self._forwards:
            layer.__dict__.pop("forward", None)


def _packs(layer: nn.Linear) -> bool:
    return (
        type(layer) is nn.Linear
        and layer.weight.dtype == torch.float32
        and layer.weight.device.type == "cpu"
        and layer.weight.numel() >= _SMALLEST
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def _forward(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight, bias = _packed_weight(layer), layer.bias

    def forward(rows: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")

    return forward


def _packed_weight(layer: nn.Linear) -> Tensor:
    """The packed weight, packed again if the layer's own has changed since."""
    weight = layer.weight
    version = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
    held = _packed.get(layer)
    if held is None or held[0] != version:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _TYPICAL_ROWS)
        held = _packed[layer] = (version, packed)
    return held[1]
