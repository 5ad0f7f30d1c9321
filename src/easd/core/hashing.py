"""The counter-based hashes that all randomness comes from, in wrapping integer arithmetic.

The 64-bit finaliser of SplitMix (Steele et al. 2014) mixes keys, and a two-round 32-bit avalanche
hash ("lowbias32", C. Wellons) mixes token ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN_64 = -0x61C8864680B583EB
MIX_64 = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
GOLDEN_32 = -0x61C88647
MIX_32 = (0x21F0AAAD, 0x735A2D97)


def mix_key(keys: Tensor, positions: Tensor, purpose: int) -> Tensor:
    """A 64-bit key for each of `keys` at `positions`, for one of four purposes."""
    z = keys + (positions * 4 + purpose) * GOLDEN_64
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * MIX_64[0]
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * MIX_64[1]
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def random_bits(key: Tensor, counter: Tensor | None = None) -> Tensor:
    """Uniform 31-bit integers from 64-bit keys [...] and counters [n]: [...] or [..., n]."""
    low, high = key.to(torch.int32), (key >> 32).to(torch.int32)
    if counter is None:
        return _avalanche(_avalanche(low) ^ high) & 0x7FFFFFFF
    mixed = _avalanche(counter * GOLDEN_32 + low[..., None])
    return _avalanche(mixed ^ high[..., None]) & 0x7FFFFFFF


def _avalanche(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 16) & 0xFFFF)) * MIX_32[0]
    x = (x ^ ((x >> 15) & 0x1FFFF)) * MIX_32[1]
    return x ^ ((x >> 15) & 0x1FFFF)


def avalanche_in_place(x: Tensor, scratch: Tensor) -> None:
    """One round of the 32-bit hash, overwriting `x` and `scratch`."""
    for shift, mask, factor in ((16, 0xFFFF, MIX_32[0]), (15, 0x1FFFF, MIX_32[1])):
        torch.bitwise_right_shift(x, shift, out=scratch)
        scratch &= mask
        x ^= scratch
        x *= factor
    torch.bitwise_right_shift(x, 15, out=scratch)
    scratch &= 0x1FFFF
    x ^= scratch
