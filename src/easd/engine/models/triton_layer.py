"""The Triton programs behind `easd.engine.models.fused`; importing this module imports triton.

Each reads and writes a model's dtype and computes in float32, so that it rounds once.
"""

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def add_norm(rows, added, weight, total, normed, width, eps, BLOCK: tl.constexpr):
    """Adds one row of [rows, width] to another and normalises the sum."""
    column = tl.arange(0, BLOCK)
    at, inside = tl.program_id(0).to(tl.int64) * width + column, column < width
    both = tl.load(rows + at, inside, 0.0).to(tl.float32)
    both += tl.load(added + at, inside, 0.0).to(tl.float32)
    rounded = both.to(total.dtype.element_ty)
    tl.store(total + at, rounded, inside)
    whole = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(whole * whole) / width + eps)
    factor = tl.load(weight + column, inside, 0.0).to(tl.float32)
    tl.store(normed + at, (whole * scale * factor).to(normed.dtype.element_ty), inside)


@triton.jit
def gate(gates, values, size, BLOCK: tl.constexpr):
    """Multiplies `values` by SiLU of `gates`, in the memory of `gates`."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    given = tl.load(gates + at, inside, 0.0).to(tl.float32)
    found = given * tl.sigmoid(given) * tl.load(values + at, inside, 0.0).to(tl.float32)
    tl.store(gates + at, found.to(gates.dtype.element_ty), inside)


@triton.jit
def turn(
    query,
    key,
    value,
    query_weight,
    key_weight,
    cos,
    sin,
    positions,
    turned,
    keys,
    values,
    length,
    num_heads,
    num_keys,
    row_stride,
    head_stride,
    eps,
    NORM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rotates one head of a token by its position, after a norm if asked, and puts it in its place.

    Keys and values go to their slot in the cache, queries to [B, H, T, D].
    """
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, place = token // length, token % length
    lower = tl.arange(0, BLOCK)
    inside = lower < HALF
    upper = lower + HALF
    size = 2 * HALF
    slot = row * row_stride + tl.load(positions + token) * size
    is_value = head >= num_heads + num_keys
    if head < num_heads:
        source, weight = query + (token * num_heads + head) * size, query_weight
        target = turned + ((row * num_heads + head) * length + place) * size
    elif is_value:
        own = head - num_heads - num_keys
        source, weight = value + (token * num_keys + own) * size, key_weight
        target = values + slot + own * head_stride
    else:
        own = head - num_heads
        source, weight = key + (token * num_keys + own) * size, key_weight
        target = keys + slot + own * head_stride
    low = tl.load(source + lower, inside, 0.0).to(tl.float32)
    high = tl.load(source + upper, inside, 0.0).to(tl.float32)
    if not is_value:
        if NORM:
            scale = tl.rsqrt((tl.sum(low * low) + tl.sum(high * high)) / size + eps)
            low *= scale * tl.load(weight + lower, inside, 0.0).to(tl.float32)
            high *= scale * tl.load(weight + upper, inside, 0.0).to(tl.float32)
        cos += token * size
        sin += token * size
        low_cos = tl.load(cos + lower, inside, 0.0).to(tl.float32)
        low_sin = tl.load(sin + lower, inside, 0.0).to(tl.float32)
        high_cos = tl.load(cos + upper, inside, 0.0).to(tl.float32)
        high_sin = tl.load(sin + upper, inside, 0.0).to(tl.float32)
        low, high = low * low_cos - high * low_sin, high * high_cos + low * high_sin
    kind = turned.dtype.element_ty
    tl.store(target + lower, low.to(kind), inside)
    tl.store(target + upper, high.to(kind), inside)
