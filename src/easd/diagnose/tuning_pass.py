"""Teacher-forced pass of both models over reference texts, for tuning.

For a pool of both distributions, a position stores the target's plausible tokens with both
probabilities. Every other candidate (the target at other temperatures, EASD) needs a few numbers.
Whole distributions are in memory for some positions at a time only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from easd.core.rules import EASD
from easd.core.rules.pool import LEAST_DRAFT_PROB
from easd.core.signals import log
from easd.core.step import Step
from easd.diagnose.candidates import DRAFT_TEMPERATURES, LEAST_PLAUSIBLE, TEMPERATURES, Reading
from easd.diagnose.positions import Positions, check_count
from easd.diagnose.reference_pass import ReadStep, ReferenceText, read_steps, signals_at
from easd.engine.pair import Pair
from easd.engine.settings import Settings

# Probabilities of one model in a group of positions: 1 MB in float32. Temporaries of this size are
# reused; the system clears larger ones page by page, which takes longer than the arithmetic.
_MOST_PROBS = 2**18

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
    row, column = read.there.nonzero(as_tuple=True)
    size = max(1, _MOST_PROBS // read.step.target_probs.shape[-1])
    parts = [
        _columns(read.step.at(*at), read.right[at])
        for at in zip(row.split(size), column.split(size), strict=True)
    ]
    values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    kept = {name: value.cpu().numpy() for name, value in values.items()}
    numbers = np.asarray(read.batch.numbers)[row.cpu().numpy()]
    return kept | {"text": numbers, "place": read.begin + column.cpu().numpy()}


def _columns(step: Step, right: Tensor) -> dict[str, Tensor]:
    """The columns of n positions, which are the step's rows; `right` [n]."""
    signals = signals_at(step.draft_probs, step.target_probs, step.has_draft())
    draft, target, right = step.draft_probs[:, 0], step.target_probs[:, 0], right[:, None]
    best, draft_best = target.argmax(-1, keepdim=True), draft.argmax(-1, keepdim=True)
    plausible = target >= LEAST_PLAUSIBLE * target.gather(-1, best)
    place = plausible.cumsum(-1) - 1
    without_draft_top = target.scatter(-1, draft_best, -1.0).argmax(-1, keepdim=True)
    open_law = _OPEN.open_law_of(step, right[:, None])[:, 0]
    # Where its gate is open, greedy EASD refuses the draft's best token.
    return {
        "easd": torch.cat([(without_draft_top == right).to(open_law), open_law], -1),
        "lengths": plausible.sum(-1),
        "target_probs": target[plausible],
        "draft_probs": draft[plausible].clamp_min(LEAST_DRAFT_PROB),
        "right": _place(plausible, place, right),
        "draft_top": _place(plausible, place, draft_best),
        **signals,
        **_temperatures(target, draft, right, best, draft_best),
    }


def _place(plausible: Tensor, place: Tensor, token: Tensor) -> Tensor:
    """The index of `token` [n, 1] among the plausible ones, [n]; -1 where it is not plausible."""
    return torch.where(plausible.gather(-1, token), place.gather(-1, token), -1)[:, 0]


def _temperatures(
    target: Tensor, draft: Tensor, right: Tensor, best: Tensor, draft_best: Tensor
) -> dict[str, Tensor]:
    """The columns by temperature; `best` and `draft_best` [n, 1]: each model's best token."""
    top = draft.gather(-1, draft_best)
    target_logs, draft_logs = log(target / target.gather(-1, best)), log(draft / top)
    proposals: list[Tensor | None] = []
    scale = []
    for temperature in DRAFT_TEMPERATURES:
        if temperature:
            # `softmax` takes an eighth of the time of `exp`, which is slow where it underflows.
            # The largest logarithm is 0, so the largest share is one over the sum.
            proposal = (draft_logs / temperature).softmax(-1)
            proposals.append(proposal)
            total = 1 / proposal.gather(-1, draft_best)
            scale.append((total.log() + top.log() / temperature)[:, 0])
        else:  # a greedy proposal has no scale; this fills its column
            proposals.append(None)
            scale.append(torch.zeros_like(top)[:, 0])
    right_at, accepted = [], []
    for temperature in TEMPERATURES:
        if temperature:
            # Powers by one logarithm take a quarter of the time that `pow` takes.
            law = (target_logs / temperature).softmax(-1)
            right_at.append(law.gather(-1, right)[:, 0])
            overlaps = [
                law.gather(-1, draft_best)[:, 0]
                if proposal is None
                else torch.minimum(law, proposal).sum(-1)
                for proposal in proposals
            ]
            accepted.append(torch.stack(overlaps, -1))
        else:  # a greedy target's draft is greedy, too
            right_at.append((best == right)[:, 0].to(target))
            alike = (best == draft_best).to(target)
            accepted.append(alike.expand(-1, len(DRAFT_TEMPERATURES)))
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
