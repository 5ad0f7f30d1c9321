"""The Triton programs behind `easd.core.kernels`; importing this module imports triton.

A vocabulary row is cut into pieces of STEPS x BLOCK tokens, one program a piece: enough programs
to fill a GPU even at batch 1. Within a piece, tokens of equal place in their block form a column
[STEPS], and every quantity is kept column by column [BLOCK], so that the pass itself has no
reduction. A second program per row puts the pieces together. Pieces have one size whatever the
batch, so that a row's neighbours do not change the order in which it is summed.

Ties go to the lower token.
"""

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from triton.language.extra import libdevice  # pyright: ignore[reportMissingImports]

from easd.core.hashing import GOLDEN_32, MIX_32

BLOCK = 1024
STEPS = 8

# Partial results of a piece, in `sums` [positions, FIELDS, pieces].
FIELDS = 6
_DRAFT_ENTROPY = tl.constexpr(0)
_TARGET_ENTROPY = tl.constexpr(1)
_TARGET_AT_TOP = tl.constexpr(2)
_DRAFT_AT_TOP = tl.constexpr(3)
_ODDS = tl.constexpr(4)
_OTHERS = tl.constexpr(5)
_FIELDS = tl.constexpr(FIELDS)

_TINY = tl.constexpr(2.0**-126)
_LN_2 = tl.constexpr(0.6931471805599453)
_NO_TOKEN = tl.constexpr(2**31 - 1)
_GOLDEN = tl.constexpr(GOLDEN_32 % 2**32)
_MIX_0 = tl.constexpr(MIX_32[0])
_MIX_1 = tl.constexpr(MIX_32[1])


@triton.jit
def scan(
    draft_probs,
    target_probs,
    sums,
    best_token,
    top_value,
    top_token,
    rows,
    vocab_size,
    draft_stride,
    draft_row_stride,
    target_stride,
    target_row_stride,
    N: tl.constexpr,
    GATE: tl.constexpr,
    ODDS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Reduces one piece of one position of [groups, rows, V]; `merge` combines the pieces."""
    position, piece, pieces = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    group, row = position // rows, position % rows
    draft_probs += group * draft_stride + row * draft_row_stride
    target_probs += group * target_stride + row * target_row_stride
    start = piece * BLOCK * STEPS
    column = start + tl.arange(0, BLOCK)

    none = tl.zeros([BLOCK], tl.float32)
    draft_entropy, draft_best, draft_top = none, none, column
    target_entropy, target_best, target_top = none, none, column
    # The largest entry so far stays out of the sums, since its 1 - p may cancel.
    draft_at_top, odds, others = none, none, none
    for step in tl.static_range(STEPS):
        token = column + step * BLOCK
        draft = tl.load(draft_probs + token, mask=token < vocab_size, other=0.0)
        target = tl.load(target_probs + token, mask=token < vocab_size, other=0.0)
        larger = target > target_best
        if GATE:
            draft_entropy -= draft * libdevice.fast_log2f(tl.maximum(draft, _TINY))
            target_entropy -= target * libdevice.fast_log2f(tl.maximum(target, _TINY))
            draft_larger = draft > draft_best
            draft_best = tl.where(draft_larger, draft, draft_best)
            draft_top = tl.where(draft_larger, token, draft_top)
        if ODDS:
            smaller = tl.where(larger, target_best, target)
            odds += tl.where(larger, draft_at_top, draft) / (1 - smaller)
            others += smaller
            draft_at_top = tl.where(larger, draft, draft_at_top)
        target_best = tl.where(larger, target, target_best)
        target_top = tl.where(larger, token, target_top)

    sums += position * _FIELDS * pieces + piece
    if ODDS:
        best, top, at_top, odds_sum, others_sum = _without_top(
            target_best, target_top, draft_at_top, odds, others
        )
        tl.store(best_token + position * pieces + piece, top)
        tl.store(sums + _TARGET_AT_TOP * pieces, best)
        tl.store(sums + _DRAFT_AT_TOP * pieces, at_top)
        tl.store(sums + _ODDS * pieces, odds_sum)
        tl.store(sums + _OTHERS * pieces, others_sum)
    if GATE:
        tl.store(sums + _DRAFT_ENTROPY * pieces, tl.sum(draft_entropy, 0) * _LN_2)
        tl.store(sums + _TARGET_ENTROPY * pieces, tl.sum(target_entropy, 0) * _LN_2)
        of_draft = (position * 2 * pieces + piece) * N
        of_target = of_draft + pieces * N
        rest = tl.arange(0, STEPS) * BLOCK
        for place in range(N):
            value, top, draft_best, draft_top = _take(
                draft_probs, vocab_size, start, rest, draft_best, draft_top, BLOCK
            )
            tl.store(top_value + of_draft + place, value)
            tl.store(top_token + of_draft + place, top)
            value, top, target_best, target_top = _take(
                target_probs, vocab_size, start, rest, target_best, target_top, BLOCK
            )
            tl.store(top_value + of_target + place, value)
            tl.store(top_token + of_target + place, top)


@triton.jit
def merge(
    sums,
    best_token,
    top_value,
    top_token,
    draft_entropy,
    target_entropy,
    shared_top,
    rest,
    token,
    top_odds,
    pieces,
    N: tl.constexpr,
    GATE: tl.constexpr,
    ODDS: tl.constexpr,
    PIECES: tl.constexpr,
    CANDIDATES: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Combines a position's pieces; PIECES, CANDIDATES and PLACES are rounded up to powers of 2."""
    position = tl.program_id(0).to(tl.int64)
    piece = tl.arange(0, PIECES)
    there = piece < pieces
    sums += position * _FIELDS * pieces + piece
    if GATE:
        entropy = tl.sum(tl.load(sums + _DRAFT_ENTROPY * pieces, mask=there, other=0.0), 0)
        tl.store(draft_entropy + position, tl.maximum(entropy, 0.0))
        entropy = tl.sum(tl.load(sums + _TARGET_ENTROPY * pieces, mask=there, other=0.0), 0)
        tl.store(target_entropy + position, tl.maximum(entropy, 0.0))
        top_value += position * 2 * pieces * N
        top_token += position * 2 * pieces * N
        draft_top = _top(top_value, top_token, pieces * N, -1, N, CANDIDATES, PLACES)
        top_value += pieces * N
        top_token += pieces * N
        target_top = _top(top_value, top_token, pieces * N, -2, N, CANDIDATES, PLACES)
        same = draft_top[:, None] == target_top[None, :]
        tl.store(shared_top + position, tl.sum(tl.sum(same.to(tl.int64), 1), 0))
    if ODDS:
        top = tl.load(best_token + position * pieces + piece, mask=there, other=_NO_TOKEN)
        _, top, at_top, odds, others = _without_top(
            tl.load(sums + _TARGET_AT_TOP * pieces, mask=there, other=0.0),
            top,
            tl.load(sums + _DRAFT_AT_TOP * pieces, mask=there, other=0.0),
            tl.load(sums + _ODDS * pieces, mask=there, other=0.0),
            tl.load(sums + _OTHERS * pieces, mask=there, other=0.0),
        )
        tl.store(rest + position, odds)
        tl.store(token + position, top.to(tl.int64))
        tl.store(top_odds + position, tl.div_rn(at_top, others))


@triton.jit
def race(
    probs,
    keys,
    values,
    winners,
    rows,
    vocab_size,
    stride,
    row_stride,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """The first of one piece's exponential clocks; the same clocks as in `easd.core.noise`."""
    position, piece, pieces = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    probs += (position // rows) * stride + (position % rows) * row_stride
    key = tl.load(keys + position)
    low, high = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    column = piece * BLOCK * STEPS + tl.arange(0, BLOCK)
    best, winner = tl.zeros([BLOCK], tl.float32), column
    for step in range(STEPS):
        token = column + step * BLOCK
        prob = tl.load(probs + token, mask=token < vocab_size, other=0.0)
        mixed = _avalanche(token.to(tl.uint32) * _GOLDEN + low) ^ high
        bits = (_avalanche(mixed) & 0x7FFFFFFF).to(tl.float32)
        unit = tl.minimum((bits + 0.5) * 2.0**-31, 1 - 2.0**-24)
        # Approximate division: its last two bits may differ from torch's, and so may near-ties. The
        # exact one has a slow path for very improbable tokens.
        value = prob / -libdevice.log1p(-unit)
        larger = value > best
        best, winner = tl.where(larger, value, best), tl.where(larger, token, winner)
    value, token = _first(best, winner)
    tl.store(values + position * pieces + piece, value)
    tl.store(winners + position * pieces + piece, token.to(tl.int64))


@triton.jit
def _avalanche(x):
    x = (x ^ (x >> 16)) * _MIX_0
    x = (x ^ (x >> 15)) * _MIX_1
    return x ^ (x >> 15)


@triton.jit
def _first(values, tokens):
    """The largest value, and the lowest token with it."""
    best = tl.max(values, 0)
    return best, tl.min(tl.where(values == best, tokens, _NO_TOKEN), 0)


@triton.jit
def _without_top(values, tokens, draft_at, odds, others):
    """Value, token and draft probability at the largest entry; the sums with all other entries."""
    best, top = _first(values, tokens)
    here = tokens == top
    kept = tl.where(here, 0.0, values)
    odds += tl.where(here, 0.0, draft_at) / (1 - kept)
    at_top = tl.sum(tl.where(here, draft_at, 0.0), 0)
    return best, top, at_top, tl.sum(odds, 0), tl.sum(others + kept, 0)


@triton.jit
def _take(probs, vocab_size, start, rest, best, top, BLOCK: tl.constexpr):
    """Pops the largest of the columns' `best` and replaces it by the next one of its column."""
    value, token = _first(best, top)
    column = start + (token - start) % BLOCK + rest
    prob = tl.load(probs + column, mask=column < vocab_size, other=0.0)
    after = (prob < value) | ((prob == value) & (column > token))
    next_value, next_token = _first(tl.where(after, prob, 0.0), column)
    here = top == token
    return value, token, tl.where(here, next_value, best), tl.where(here, next_token, top)


@triton.jit
def _top(
    values, tokens, count, absent, N: tl.constexpr, CANDIDATES: tl.constexpr, PLACES: tl.constexpr
):
    """Tokens [PLACES] of the N largest candidates; `absent` where fewer are possible."""
    candidate = tl.arange(0, CANDIDATES)
    value = tl.load(values + candidate, mask=candidate < count, other=0.0)
    token = tl.load(tokens + candidate, mask=candidate < count, other=_NO_TOKEN)
    place = tl.arange(0, PLACES)
    found = tl.zeros([PLACES], tl.int32) + absent
    for n in range(N):
        best, top = _first(value, token)
        found = tl.where(place == n, tl.where(best > 0, top, absent), found)
        value = tl.where(token == top, 0.0, value)
    return found
