"""Linear layers with int8 weights, for a draft on a CPU.

Drafting for a few texts is bound by reading the draft's weights once per token, so a quarter of the
bytes takes little more than a quarter of the time. Only weights are quantised, with a scale for
each row of a matrix: with activations quantised over the batch, a text would depend on its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from easd.errors import ModelError

_SMALLEST = 2**16  # weights of a layer; below, the overhead of a call dominates
_BLOCK = 64  # torch's kernel reads out of bounds unless sides are multiples of its vector size
_MOST_ROWS = 32  # more rows are faster as one product in float32


class Int8Linear(nn.Linear):
    """A linear layer with weight [out, in] = `scales[out] * weight` and activations in bfloat16."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        weight = layer.weight.detach().float()
        scales = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        whole = (weight / scales[:, None]).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.scales = nn.Parameter(scales.bfloat16(), requires_grad=False)
        self.bias = layer.bias
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Outputs [..., out] of `input` [..., in], in its dtype."""
        flat = input.flatten(0, -2).bfloat16()
        if len(flat) <= _MOST_ROWS:
            product = torch.ops.aten._weight_int8pack_mm(flat, self.weight, self.scales)
        else:
            whole = nn.functional.linear(flat.float(), self.weight.float())
            product = (whole * self.scales.float()).bfloat16()
        product = product.to(input.dtype).view(*input.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


def quantise_linears(model: nn.Module, *, spared: nn.Module) -> None:
    """Rounds the weights of the large linear layers of `model`, on a CPU, to int8 in place.

    Args:
        spared: a model that must not change.

    Raises:
        ModelError: `model` is not on a CPU, shares such a layer with `spared`, or has none.
    """
    if (device := next(model.parameters()).device).type != "cpu":
        raise ModelError(
            f"int8 weights for a draft on {device} would not make it faster; leave int8_draft out, "
            "or decode on a CPU"
        )
    kept, rounded = set(spared.modules()), 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not nn.Linear or not _fits(layer.weight):
                continue
            if layer in kept:
                raise ModelError(
                    f"draft and target share the layer {name!r}, and the target's weights must not "
                    "be rounded; leave int8_draft out"
                )
            setattr(parent, name, Int8Linear(layer))
            rounded += 1
    if not rounded:
        raise ModelError(
            "the draft has no linear layer that is large enough to gain from int8 weights; "
            "leave int8_draft out"
        )


def _fits(weight: Tensor) -> bool:
    return weight.numel() >= _SMALLEST and not any(side % _BLOCK for side in weight.shape)
