"""Fused Triton kernels for what lies between the matrix products of a layer on a GPU.

With a few texts, each of the dozens of small kernels of a layer takes longer to start than to run.
EASD_FUSED=1 turns them on.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from easd.core import kernels

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_GATED_AT_ONCE = 1024


def usable(rows: Tensor) -> bool:
    """Whether the kernels support activations like `rows`."""
    return kernels.usable(rows, _DTYPES) and os.environ.get("EASD_FUSED") == "1"


def add_norm(rows: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of two [..., width], and its RMS norm."""
    programs, width = _programs(), rows.shape[-1]
    total, normed = torch.empty_like(rows), torch.empty_like(rows)
    with torch.cuda.device_of(rows):
        programs.add_norm[(rows.numel() // width,)](
            *(rows, added, weight, total, normed, width, eps),
            BLOCK=programs.triton.next_power_of_2(width),
        )
    return total, normed


def gate_(gates: Tensor, values: Tensor) -> Tensor:
    """SiLU of `gates`, times `values`, in the memory of `gates`."""
    size = gates.numel()
    with torch.cuda.device_of(gates):
        _programs().gate[(-(-size // _GATED_AT_ONCE),)](gates, values, size, BLOCK=_GATED_AT_ONCE)
    return gates


def turn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    norms: tuple[Tensor, Tensor, float] | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Queries [B, H, T, D], rotated by their positions; stores rotated keys, and values.

    Args:
        query: [B, T, H * D].
        key, value: [B, T, heads * D].
        norms: weights [D] of the norms of queries and keys, and their epsilon, if there are any.
        cos, sin: [B, T, D].
        positions: [B, T].
        keys, values: the rows' slots, [B, heads, S, D].
    """
    programs = _programs()
    (batch, length), (num_keys, size) = positions.shape, keys.shape[1::2]
    num_heads = query.shape[-1] // size
    turned = query.new_empty(batch, num_heads, length, size)
    query_weight, key_weight, eps = norms or (query, key, 0.0)
    with torch.cuda.device_of(query):
        programs.turn[(batch * length, num_heads + 2 * num_keys)](
            *(query, key, value, query_weight, key_weight, cos, sin, positions),
            *(turned, keys, values, length, num_heads, num_keys, *keys.stride()[:2], eps),
            NORM=norms is not None,
            HALF=size // 2,
            BLOCK=programs.triton.next_power_of_2(size // 2),
            num_warps=1,
        )
    return turned


def _programs() -> Any:
    """The module of Triton programs; importing it needs triton."""
    from easd.engine.models import triton_layer

    return triton_layer
