"""Fused Triton kernels for verification: one pass over each vocabulary row.

Each function computes what its namesake in `signals`, `rules.gated` or `noise` defines; those run
wherever `usable` is false. EASD_KERNELS=0 turns the kernels off.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

MOST_TOP = 16
"""Largest `top_n` of the kernels; above it, searching for the top dominates reading the rows."""

_HAVE_TRITON = find_spec("triton") is not None


def usable(tensor: Tensor, dtypes: Sequence[torch.dtype] = (torch.float32,)) -> bool:
    """Whether kernels for these dtypes support `tensor`; false while torch compiles."""
    return (
        tensor.is_cuda
        and os.environ.get("EASD_KERNELS") != "0"
        and tensor.dtype in dtypes
        and _HAVE_TRITON
        and not torch.compiler.is_compiling()
    )


def gate_signals(draft_probs: Tensor, target_probs: Tensor, top_n: int) -> dict[str, Tensor]:
    """Entropies in nats and the number of shared top tokens; [..., V] -> name -> [...].

    `top_n` is at most `MOST_TOP`; ties go to the lower token.
    """
    return _scan(draft_probs, target_probs, top_n, gate=True, odds=False)[0]


def sum_of_odds(draft_probs: Tensor, target_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `signals.sum_of_odds`, from rows [..., V]; all [...]."""
    return _scan(draft_probs, target_probs, 1, gate=False, odds=True)[1]


def race(probs: Tensor, key: Tensor) -> Tensor:
    """Samples [...] from `probs` [..., V] with the exponential clocks of `key` [...]."""
    programs, rows = _programs(), _rows(probs)
    grid = _grid(programs, probs)
    values = torch.empty(grid, device=probs.device)
    winners = torch.empty(grid, dtype=torch.int64, device=probs.device)
    with torch.cuda.device_of(probs):
        programs.race[grid](
            *(rows, key.expand(probs.shape[:-1]).contiguous(), values, winners),
            *(*rows.shape[1:], *rows.stride()[:2]),
            BLOCK=programs.BLOCK,
            STEPS=programs.STEPS,
        )
    first = values.argmax(-1, keepdim=True)
    return winners.gather(-1, first).view(probs.shape[:-1])


def _scan(
    draft_probs: Tensor, target_probs: Tensor, top_n: int, *, gate: bool, odds: bool
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """`gate_signals` and `sum_of_odds`; tensors of the one not asked for stay uninitialised."""
    programs = _programs()
    draft, target = _rows(draft_probs.expand_as(target_probs)), _rows(target_probs)
    positions, pieces = _grid(programs, target_probs)

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=target.device)

    of_pieces = (
        new(positions, programs.FIELDS, pieces),
        new(positions, pieces, dtype=torch.int32),
        new(positions, 2, pieces, top_n),
        new(positions, 2, pieces, top_n, dtype=torch.int32),
    )
    shape = target_probs.shape[:-1]
    signals = {
        "draft_entropy": new(*shape),
        "target_entropy": new(*shape),
        "shared_top": new(*shape, dtype=torch.int64),
    }
    sums = new(*shape), new(*shape, dtype=torch.int64), new(*shape)
    asked = {"N": top_n, "GATE": gate, "ODDS": odds}
    with torch.cuda.device_of(target):
        programs.scan[positions, pieces](
            *(draft, target, *of_pieces),
            *(*target.shape[1:], *draft.stride()[:2], *target.stride()[:2]),
            **asked,
            BLOCK=programs.BLOCK,
            STEPS=programs.STEPS,
        )
        room = programs.triton.next_power_of_2
        programs.merge[(positions,)](
            *(*of_pieces, *signals.values(), *sums, pieces),
            **asked,
            PIECES=room(pieces),
            CANDIDATES=room(pieces * top_n),
            PLACES=room(top_n),
        )
    return signals, sums


def _programs() -> Any:
    """The module of Triton programs; importing it needs triton."""
    from easd.core import triton_kernels

    return triton_kernels


def _rows(probs: Tensor) -> Tensor:
    """[..., V] as [groups, rows, V], contiguous along V."""
    if probs.stride(-1) != 1:
        probs = probs.contiguous()
    return probs[(None,) * (3 - probs.ndim)].flatten(0, -3)


def _grid(programs: Any, probs: Tensor) -> tuple[int, int]:
    """The number of positions of [..., V], and of pieces that each is read in."""
    piece = programs.BLOCK * programs.STEPS
    return probs.shape[:-1].numel(), -(-probs.shape[-1] // piece)
