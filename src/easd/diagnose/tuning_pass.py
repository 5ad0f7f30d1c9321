"""Teacher-forced pass of both models over reference texts, for tuning.

For a pool of both distributions, a position stores the target's plausible tokens with both
probabilities. Every other candidate (the target at other temperatures, EASD) needs a few numbers.
Whole distributions are in memory for some positions at a time only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

import numpy as np
import torch
from torch import Tensor

from easd.core.rules import EASD
from easd.core.rules.pool import LEAST_DRAFT_PROB
from easd.core.signals import log
from easd.diagnose.candidates import DRAFT_TEMPERATURES, LEAST_PLAUSIBLE, TEMPERATURES, Reading
from easd.diagnose.positions import Positions, check_count
from easd.diagnose.reference_pass import ReadStep, ReferenceText, read_steps, signals_at
from easd.engine.pair import Pair
from easd.engine.sampling import raised
from easd.engine.settings import Settings

_OPEN = EASD(conditions=("overlap",), tau_o=0.0, draft_at_bonus=True)


def read(
    pair: Pair,
    texts: Sequence[ReferenceText],
    settings: Settings,
    on_progress: Callable[[int, int], None] | None = None,
) -> Reading:
    """Reads the texts with both models at temperature 1.

    Arguments and errors are those of `read_positions`.
    """
    check_count(len(texts))
    settings = replace(settings, temperature=1.0, draft_temperature=None)
    return _joined([_piece(step) for step in read_steps(pair, texts, settings, on_progress)])


def _piece(read: ReadStep) -> dict[str, np.ndarray]:
    """The positions of one step, by column; lists of plausible tokens are flat, with `lengths`."""
    step, there = read.step, read.there
    draft, target = step.draft_probs[:, :-1], step.target_probs[:, :-1]
    signals = signals_at(draft, target, there)
    draft, target, right = draft[there], target[there], read.right[there][:, None]
    best, draft_best = target.argmax(-1, keepdim=True), draft.argmax(-1, keepdim=True)
    plausible = target >= LEAST_PLAUSIBLE * target.gather(-1, best)
    place = plausible.cumsum(-1) - 1
    row, column = (each.cpu().numpy() for each in there.nonzero(as_tuple=True))
    without_draft_top = target.scatter(-1, draft_best, -1.0).argmax(-1, keepdim=True)
    open_law = _OPEN.law(step)[:, :-1].gather(-1, read.right[..., None])[..., 0][there]
    # Where its gate is open, greedy EASD refuses the draft's best token.
    values = {
        "easd": torch.stack([(without_draft_top == right)[:, 0].to(open_law), open_law], -1),
        "lengths": plausible.sum(-1),
        "target_probs": target[plausible],
        "draft_probs": draft[plausible].clamp_min(LEAST_DRAFT_PROB),
        "right": _place(plausible, place, right),
        "draft_top": _place(plausible, place, draft_best),
        **signals,
        **_temperatures(target, draft, right, best == draft_best),
    }
    numbers = np.asarray(read.batch.numbers)[row]
    kept = {name: value.cpu().numpy() for name, value in values.items()}
    return kept | {"text": numbers, "place": read.begin + column}


def _place(plausible: Tensor, place: Tensor, token: Tensor) -> Tensor:
    """The index of `token` [n, 1] among the plausible ones, [n]; -1 where it is not plausible."""
    return torch.where(plausible.gather(-1, token), place.gather(-1, token), -1)[:, 0]


def _temperatures(target: Tensor, draft: Tensor, right: Tensor, alike: Tensor) -> dict[str, Tensor]:
    """The columns by temperature; `alike` [n, 1]: whether both models have the same best token."""
    top = draft.amax(-1, keepdim=True)
    target_logs, draft_logs = log(target / target.amax(-1, keepdim=True)), log(draft / top)
    proposals, scale = [], []
    for temperature in DRAFT_TEMPERATURES:
        if temperature:
            # `softmax` takes an eighth of the time of `exp`, which is slow where it underflows.
            # The largest logarithm is 0, so the largest share is one over the sum.
            proposals.append((draft_logs / temperature).softmax(-1))
            total = 1 / proposals[-1].amax(-1, keepdim=True)
            scale.append((total.log() + top.log() / temperature)[:, 0])
        else:  # a greedy proposal has no scale; this fills its column
            proposals.append(raised(draft, inf))
            scale.append(torch.zeros_like(top)[:, 0])
    right_at, accepted = [], []
    for temperature in TEMPERATURES:
        # Powers by one logarithm take a quarter of the time that `pow` takes.
        law = (target_logs / temperature).softmax(-1) if temperature else raised(target, inf)
        right_at.append(law.gather(-1, right)[:, 0])
        if temperature:
            accepted.append(
                torch.stack([torch.minimum(law, each).sum(-1) for each in proposals], -1)
            )
        else:  # a greedy target's draft is greedy, too
            accepted.append(alike.to(law).expand(-1, len(proposals)))
    return {
        "draft_scale": torch.stack(scale, -1).double(),
        "right_at": torch.stack(right_at, -1).double(),
        "accepted_at": torch.stack(accepted, 1).double(),
    }


def _joined(pieces: list[dict[str, np.ndarray]]) -> Reading:
    """All pieces, sorted by text and position."""
    whole = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    order = np.lexsort((whole["place"], whole["text"]))
    lengths = whole["lengths"]
    first = np.cumsum(lengths) - lengths
    starts = np.concatenate([[0], np.cumsum(lengths[order])])
    # The unsorted index of each plausible token of the sorted positions.
    source = np.arange(starts[-1]) + np.repeat(first[order] - starts[:-1], lengths[order])
    names = ("draft_entropy", "target_entropy", "shared_top")
    texts, owners = np.unique(whole["text"][order], return_inverse=True)

    def placed(name: str) -> np.ndarray:
        place = whole[name][order]
        return np.where(place < 0, -1, starts[:-1] + place)

    positions = Positions(
        values={name: whole[name][order] for name in names},
        texts=owners,
        n_texts=len(texts),
        target_logs=np.log(whole["target_probs"][source].astype(np.float64)),
        draft_logs=np.log(whole["draft_probs"][source].astype(np.float64)),
        starts=starts,
        right=placed("right"),
    )
    return Reading(
        positions=positions,
        draft_top=placed("draft_top"),
        draft_scale=whole["draft_scale"][order],
        right_at=whole["right_at"][order],
        accepted_at=whole["accepted_at"][order],
        easd=whole["easd"][order].astype(np.float64),
    )
