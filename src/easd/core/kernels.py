"""What verification reads whole vocabulary rows for, in one pass over them on a GPU.

The functions give what their namesakes in `signals`, `rules.gated` and `noise` give; those
stay the definition, and the way wherever `usable` is false. EASD_KERNELS=0 turns the kernels off.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

MOST_TOP = 16
"""Above it, searching for the top takes longer than reading the rows."""

_HAVE_TRITON = find_spec("triton") is not None


def usable(tensor: Tensor) -> bool:
    """Whether the kernels can take `tensor`; never while torch compiles."""
    return (
        tensor.is_cuda
        and os.environ.get("EASD_KERNELS") != "0"
        and tensor.dtype == torch.float32
        and _HAVE_TRITON
        and not torch.compiler.is_compiling()
    )


def gate_signals(draft_probs: Tensor, target_probs: Tensor, top_n: int) -> dict[str, Tensor]:
    """Entropies in nats and the number of shared top tokens; [..., V] -> name -> [...].

    `top_n` is at most `MOST_TOP`; of equally probable tokens the lower counts as the more so.
    """
    return _scan(draft_probs, target_probs, top_n, gate=True, odds=False)[0]


def sum_of_odds(draft_probs: Tensor, target_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With o(y) = q(y) / (1 - p(y)): their sum without the target's top token, that token, its own.

    All [...], from rows [..., V] of which the target's sum to 1. The top token's 1 - p is the sum
    of the other entries, and its o infinite or nan where that is 0.
    """
    return _scan(draft_probs, target_probs, 1, gate=False, odds=True)[1]


def race(probs: Tensor, key: Tensor) -> Tensor:
    """Samples [...] from `probs` [..., V] by the clocks of `key` [...], which are not stored."""
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
    """`gate_signals` and `sum_of_odds`; what is not asked for is not filled in."""
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
    """The module with the Triton programs, which cannot be imported without triton."""
    from easd.core import triton_kernels

    return triton_kernels


def _rows(probs: Tensor) -> Tensor:
    """[..., V] as [groups, rows, V] with neighbouring entries in neighbouring places."""
    if probs.stride(-1) != 1:
        probs = probs.contiguous()
    return probs[(None,) * (3 - probs.ndim)].flatten(0, -3)


def _grid(programs: Any, probs: Tensor) -> tuple[int, int]:
    """How many positions [..., V] has, and in how many pieces each is read."""
    piece = programs.BLOCK * programs.STEPS
    return probs.shape[:-1].numel(), -(-probs.shape[-1] // piece)
