"""Randomness as a pure function of (seed, request, absolute position, purpose).

Numbers come from a counter-based hash, so a request's text depends neither on who shares its
batch nor on the order in which anything is computed, and is the same on every device. The mixing
steps are the 64-bit finaliser of SplitMix (Steele et al. 2014) for the key and a two-round 32-bit
avalanche hash ("lowbias32", C. Wellons) for the vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core import kernels
from easd.core.mixing import GOLDEN_32, GOLDEN_64, MIX_32, MIX_64

# What a number is for. Two draws at one position must never use the same number by accident.
_BLOCK, _ACCEPT, _EMIT, _DRAFT = 0, 1, 2, 3

_IN_CACHE = 65_536  # Numbers of four bytes: two such tables fit into a core's own cache.


def request_key(seed: int, request: int) -> int:
    """A signed 64-bit key for one request of one seeded run."""
    digest = hashlib.blake2b(f"{seed}/{request}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The noise of one step: `keys` [B] of the requests, `start` [B] = position of draft token 0.

    Where it is `shared`, the draft is sampled with the very numbers that the emitted token at the
    same position will be sampled with (arXiv:2408.07978).

    Where a block is verified as a whole, the tokens and tests behind its end have decided where it
    ended. The next block, which begins among them, needs numbers of its own: those of `fresh` rows
    depend on `start`, too.
    """

    keys: Tensor
    start: Tensor
    shared: bool = False
    fresh: Tensor | None = None  # bool [B]

    def accept(self, length: int) -> Tensor:
        """Uniforms in [0, 1) for the acceptance tests of a block; [B, length]."""
        positions = self.start[:, None] + torch.arange(length, device=self.start.device)
        return _unit(_mix(_key(self._block_keys[:, None], positions, _ACCEPT)))

    def emit(self, at: Tensor, vocab_size: int) -> Tensor:
        """Exponential race for the emitted token at block offsets `at` [B, ...]; [B, ..., V]."""
        return _clocks(self._keys(self.keys, at, _EMIT), vocab_size)

    def draft(self, at: Tensor, vocab_size: int) -> Tensor:
        """Exponential race for the draft token at block offsets `at` [B, ...]; [B, ..., V]."""
        return _clocks(self._drafting_keys(at), vocab_size)

    def drafts(self, count: int, vocab_size: int) -> Tensor | None:
        """`draft` at the first `count` offsets, [B, count, V], in the calls of one.

        None where such a table would cost more than it saves: it has to stay in a core's cache, and
        a GPU needs no table.
        """
        if not self.keys.is_cpu or len(self.keys) * count * vocab_size > _IN_CACHE:
            return None
        at = torch.arange(count).expand(len(self.keys), -1)
        return self.draft(at, vocab_size)

    def emitted(self, probs: Tensor, at: Tensor) -> Tensor:
        """Tokens [B, ...] drawn from `probs` [B, ..., V]: `race` against `emit`, with no table."""
        return _winner(probs, self._keys(self.keys, at, _EMIT))

    def drafted(self, probs: Tensor, at: Tensor, among: Tensor | None = None) -> Tensor:
        """Tokens [B, ...] drawn from `probs` [B, ..., V]: `race` against `draft`, with no table.

        Where only the tokens `among` [n] have any probability, the others need no clock.
        """
        keys = self._drafting_keys(at)
        if among is None:
            return _winner(probs, keys)
        return among[_winner(probs.index_select(-1, among), keys, among.to(torch.int32))]

    @property
    def _block_keys(self) -> Tensor:
        """Keys of the numbers that no other block of a fresh row has."""
        if self.fresh is None:
            return self.keys
        return torch.where(self.fresh, _key(self.keys, self.start, _BLOCK), self.keys)

    def _drafting_keys(self, at: Tensor) -> Tensor:
        if self.shared:
            return self._keys(self.keys, at, _EMIT)
        return self._keys(self._block_keys, at, _DRAFT)

    def _keys(self, keys: Tensor, at: Tensor, purpose: int) -> Tensor:
        ahead = (1,) * (at.ndim - 1)
        return _key(keys.view(-1, *ahead), self.start.view(-1, *ahead) + at, purpose)


def race(probs: Tensor, noise: Tensor) -> Tensor:
    """Samples [...] from `probs` [..., V]: the token whose exponential clock rings first."""
    return (probs / noise).argmax(-1)


def _key(keys: Tensor, positions: Tensor, purpose: int) -> Tensor:
    z = keys + (positions * 4 + purpose) * GOLDEN_64
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * MIX_64[0]
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * MIX_64[1]
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def _mix(key: Tensor, counter: Tensor | None = None) -> Tensor:
    """Uniform 31-bit integers from 64-bit keys [...] and counters [n]: [...] or [..., n]."""
    low, high = key.to(torch.int32), (key >> 32).to(torch.int32)
    if counter is None:
        x = low
    else:
        low, high = low[..., None], high[..., None]
        x = counter * GOLDEN_32 + low
    return _avalanche(_avalanche(x) ^ high) & 0x7FFFFFFF


def _avalanche(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 16) & 0xFFFF)) * MIX_32[0]
    x = (x ^ ((x >> 15) & 0x1FFFF)) * MIX_32[1]
    return x ^ ((x >> 15) & 0x1FFFF)


def _clocks(key: Tensor, vocab_size: int) -> Tensor:
    """The clocks of all tokens, [...] -> [..., V]."""
    tokens = torch.arange(vocab_size, dtype=torch.int32, device=key.device)
    return _exponential(_mix(key, tokens))


def _winner(probs: Tensor, key: Tensor, tokens: Tensor | None = None) -> Tensor:
    """The place of the first clock to ring, by `race`; of all tokens unless `tokens` [n] says."""
    if tokens is None and kernels.usable(probs):
        return kernels.race(probs, key)
    if tokens is None:
        tokens = torch.arange(probs.shape[-1], dtype=torch.int32, device=key.device)
    if not key.is_cpu or torch.compiler.is_compiling():
        return race(probs, _exponential(_mix(key, tokens)))
    rows = probs.reshape(-1, probs.shape[-1])
    first, winners = 0, []
    for clocks in _clock_blocks(key, tokens):
        winners.append(race(rows[first : first + len(clocks)], clocks))
        first += len(clocks)
    return torch.cat(winners).view(key.shape)


def _clock_blocks(key: Tensor, tokens: Tensor) -> Iterator[Tensor]:
    """`_exponential(_mix(key, tokens))`, bit for bit, as many rows at a time as stay in cache.

    Eleven times as fast as the whole table at once, for a vocabulary of 49,152 on one core. Each
    block stands in the same memory as the one before.
    """
    flat = key.reshape(-1, 1)
    low, high = flat.to(torch.int32), (flat >> 32).to(torch.int32)
    counter, count = tokens * GOLDEN_32, len(tokens)
    size = max(1, min(_IN_CACHE // count, len(flat)))
    space, times = torch.empty(2, size, count, dtype=torch.int32), torch.empty(size, count)
    for lows, highs in zip(low.split(size), high.split(size), strict=True):
        bits, scratch = space[:, : len(lows)]
        torch.add(counter, lows, out=bits)
        _avalanche_in_place(bits, scratch)
        bits ^= highs
        _avalanche_in_place(bits, scratch)
        bits &= 0x7FFFFFFF
        clocks = times[: len(lows)]
        clocks.copy_(bits).add_(0.5).mul_(2.0**-31).clamp_max_(1 - 2.0**-24)
        yield clocks.neg_().log1p_().neg_()


def _avalanche_in_place(x: Tensor, scratch: Tensor) -> None:
    for shift, mask, factor in ((16, 0xFFFF, MIX_32[0]), (15, 0x1FFFF, MIX_32[1])):
        torch.bitwise_right_shift(x, shift, out=scratch)
        scratch &= mask
        x ^= scratch
        x *= factor
    torch.bitwise_right_shift(x, 15, out=scratch)
    scratch &= 0x1FFFF
    x ^= scratch


def _unit(bits: Tensor) -> Tensor:
    # 24 bits, so that float32 holds the number exactly and never rounds to 1.
    return (bits >> 7).to(torch.float32) * 2.0**-24


def _exponential(bits: Tensor) -> Tensor:
    # Small values, which win races, keep all 31 bits; the largest stay finite.
    unit = ((bits.to(torch.float32) + 0.5) * 2.0**-31).clamp_max(1 - 2.0**-24)
    return -torch.log1p(-unit)
