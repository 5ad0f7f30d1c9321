"""The best rule for a pair: candidates fitted on some texts and judged on the others.

A candidate is a rule with a temperature. The powers of a pool, temperatures and thresholds are
fitted in 5-fold cross-validation over texts. This holds for the target's temperature, too, so the
baseline is the target at its best temperature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from easd.diagnose.candidates import (
    DRAFT_TEMPERATURES,
    TARGET,
    Fit,
    Judged,
    Reading,
    Score,
    candidates,
)
from easd.diagnose.effects import LEVEL, solved, tested
from easd.diagnose.gate_trial import GateTrial, gate_trials
from easd.diagnose.pool_fit import FOLDS, PoolFit, fit_pool, folds_of
from easd.diagnose.positions import Positions, Values
from easd.stats import Estimate, holm
from easd.stats.estimates import Clusters, student


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Results of one candidate on held-out texts.

    Attributes:
        rule: its name and its fields, fitted on all texts, like the temperatures.
        draft_temperature: with the most tokens accepted; None for greedy decoding.
        right: accuracy where each text is the only right one, else the mean probability of the
            right token.
        gain: `right` minus that of the target at its best temperature; None for the latter.
        p_value: of no gain, Holm-adjusted over all candidates.
        accepted: mean probability that a draft token is accepted.
        tokens_per_forward: forecast for blocks of gamma tokens.
    """

    name: str
    rule: Mapping[str, Any]
    temperature: float
    draft_temperature: float | None
    right: Estimate
    gain: Estimate | None
    p_value: float | None
    accepted: float
    tokens_per_forward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The candidates with the best first, and the evidence.

    Attributes:
        texts, positions: number of texts, and of their tokens.
        unique_solution: whether `right` is an accuracy.
        gamma: draft tokens asked for in the forecasts.
        candidates: by `right`, the target at its best temperature among them.
        best: name of the best one with a significant gain; else the target at its best temperature,
            with lossless speculation.
        pool: powers without a gate, fitted on all texts.
        by_texts: number of texts, and b with its interval fitted on that many.
        trials: gain from other powers where EASD's gate is open.
        nats: mean negative log-likelihood of the right among plausible tokens, held out, by model.
        outside: share of positions whose right token is not plausible.
    """

    texts: int
    positions: int
    unique_solution: bool
    gamma: int
    candidates: tuple[Candidate, ...]
    best: str
    pool: PoolFit
    by_texts: tuple[tuple[int, float, float, float], ...]
    trials: tuple[GateTrial, ...]
    nats: Mapping[str, Estimate] = field(default_factory=dict)
    outside: float = 0.0

    @property
    def chosen(self) -> Candidate:
        """The candidate to use."""
        return next(each for each in self.candidates if each.name == self.best)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def tune(reading: Reading, *, gamma: int, unique_solution: bool) -> Tuning:
    """Fits and judges every candidate.

    Args:
        reading: of reference texts.
        gamma: draft tokens asked for in one block, for the forecasts.
        unique_solution: whether each text is the only right one.
    """
    positions = reading.positions
    score = partial(solved, positions) if unique_solution else positions.by_text
    sizes = np.bincount(positions.texts).astype(np.float64)
    sizes = np.ones_like(sizes) if unique_solution else sizes

    def clusters(scores: Values) -> Clusters:
        return Clusters.of_sums(scores, sizes, None)

    found = {name: _judge(reading, fit, score) for name, fit in candidates(reading, score).items()}
    base = score(found[TARGET][0].right)
    tests = {
        name: tested(clusters(score(judged.right) - base))
        for name, (judged, _, _) in found.items()
        if name != TARGET
    }
    adjusted = dict(zip(tests, holm([p for _, p in tests.values()]), strict=True))
    listed = []
    for name, (judged, final, drafting) in found.items():
        accepted = judged.accepted[:, drafting]
        is_base = name == TARGET
        listed.append(
            Candidate(
                name=name,
                rule=final.rule,
                temperature=final.temperature,
                draft_temperature=DRAFT_TEMPERATURES[drafting] if final.temperature else None,
                right=student(clusters(score(judged.right)), LEVEL),
                gain=None if is_base else tests[name][0],
                p_value=None if is_base else float(adjusted[name]),
                accepted=float(accepted.mean()),
                tokens_per_forward=tokens_per_forward(positions, accepted, gamma),
            )
        )
    listed.sort(key=lambda each: -each.right.value)
    better = [c for c in listed if c.gain and c.gain.low > 0 and (c.p_value or 0) < 1 - LEVEL]
    trials, nats = gate_trials(positions)
    return Tuning(
        texts=positions.n_texts,
        positions=len(positions),
        unique_solution=unique_solution,
        gamma=gamma,
        candidates=tuple(listed),
        best=better[0].name if better else TARGET,
        pool=fit_pool(positions, positions.everywhere),
        by_texts=_by_texts(positions),
        trials=trials,
        nats=nats,
        outside=float((positions.right < 0).mean()),
    )


def tokens_per_forward(positions: Positions, accepted: Values, gamma: int) -> float:
    """Tokens per target forward if blocks of `gamma` tokens were drafted along the texts.

    A block that begins at position i keeps at least j tokens with the product of their acceptance
    probabilities. So the probability that a block begins at i follows from those at earlier
    positions; their sum is the expected number of blocks.
    """
    sizes = np.bincount(positions.texts)
    first = np.cumsum(sizes) - sizes
    place = np.arange(len(positions)) - first[positions.texts]
    longest = int(sizes.max())
    along = np.zeros((longest + gamma, len(sizes)))
    along[place, positions.texts] = accepted
    begins = np.zeros((longest + gamma + 1, len(sizes)))
    begins[0] = 1
    for at in range(longest):
        here, kept = begins[at] * (at < sizes), 1.0
        for length in range(gamma + 1):
            stays = along[at + length] if length < gamma else 0.0
            begins[at + length + 1] += here * kept * (1 - stays)
            kept = kept * stays
    started = begins[:longest] * (np.arange(longest)[:, None] < sizes)
    return float(len(positions) / started.sum())


def _judge(reading: Reading, fit: Fit, score: Score) -> tuple[Judged, Judged, int]:
    """A candidate judged by held-out fits; fitted on all texts; its draft temperature's index."""
    folds, everywhere = folds_of(reading.positions), reading.positions.everywhere
    right = np.zeros(len(folds))
    accepted = np.zeros((len(folds), len(DRAFT_TEMPERATURES)))
    for fold in range(FOLDS):
        own = folds == fold
        judged = fit(~own)(own)
        right[own], accepted[own] = judged.right, judged.accepted
    final = fit(everywhere)(everywhere)
    # The draft's temperature changes no text, so choosing it on the same texts flatters none.
    drafting = int(final.accepted.mean(0).argmax())
    return replace(final, right=right, accepted=accepted), final, drafting


def _by_texts(positions: Positions) -> tuple[tuple[int, float, float, float], ...]:
    """The pool's b fitted on 1/8, 1/4, 1/2 and all of the texts."""
    counts, found = positions.n_texts, []
    sizes = [n for n in (counts // 8, counts // 4, counts // 2) if n >= 5]
    for number in [*sizes, counts]:
        fit = fit_pool(positions, positions.texts < number)
        if fit.b_low is not None and fit.b_high is not None:
            found.append((number, fit.b, fit.b_low, fit.b_high))
    return tuple(found)
