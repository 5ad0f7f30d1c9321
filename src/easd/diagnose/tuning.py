"""The best rule for a pair: candidates fitted on some texts and judged on the others.

A candidate is a rule with a temperature. What it is fitted with (the powers of a pool, the target's
temperature, the draft's, a threshold) is fitted anew for each fifth of the texts, on the other four
fifths, and judged on that fifth. The target is thus at its best temperature on the same terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats

from easd.diagnose.candidates import (
    DRAFT_TEMPERATURES,
    TARGET,
    Fit,
    Judged,
    Reading,
    Score,
    candidates,
)
from easd.diagnose.effects import LEVEL, solved
from easd.diagnose.gate_trial import GateTrial, gate_trials
from easd.diagnose.pool_fit import FOLDS, PoolFit, fit_pool, folds_of
from easd.diagnose.positions import Positions, Values
from easd.stats import Estimate, holm
from easd.stats.estimates import Clusters, student


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What one candidate is worth, on texts that it was not fitted on.

    Attributes:
        name: for tables.
        rule: name and fields, fitted on all texts.
        temperature: the same of the temperature.
        draft_temperature: that accepts most; None for greedy decoding.
        right: accuracy where each text is the only right one, else the mean probability of the
            right token.
        gain: `right` minus that of the target at its best temperature; None for that one itself.
        p_value: of no gain, Holm-adjusted over all candidates.
        accepted: mean probability that a draft token is accepted.
        tokens_per_forward: forecast for blocks of gamma tokens; 1 without drafting.
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
    """The candidates, the best first, and what they rest on.

    Attributes:
        texts, positions: what was read.
        unique_solution: whether `right` is an accuracy.
        gamma: draft tokens asked for in the forecasts.
        candidates: the target at its best temperature, and whatever else, by `right`.
        best: the name of the one to use: the best of those that gain beyond doubt, else the target
            at its best temperature, speculated losslessly.
        pool: powers without a gate on all texts, at the plausibility that was chosen.
        by_texts: b and its interval fitted on the first texts: number, b, low, high.
        trials: what other powers at EASD's gate would add.
        nats: mean negative log-likelihood of the right among plausible tokens, held out: of the
            target at T = 1, at its best temperature, and of the pool.
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

    @property
    def helps(self) -> bool:
        """Whether anything gains on the target at its best temperature."""
        return self.best != TARGET

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def tune(reading: Reading, *, gamma: int, unique_solution: bool) -> Tuning:
    """Fits and judges every candidate.

    Args:
        reading: of reference texts.
        gamma: draft tokens asked for in one block, for the forecasts.
        unique_solution: whether each text is the only right one.
    """
    positions = reading.positions
    score = _score(positions, unique_solution)
    found = {name: _judge(reading, fit, score) for name, fit in candidates(reading, score).items()}
    base = score(found[TARGET][0].right)
    tests = {
        name: _gain(positions, score(judged.right), base, unique_solution)
        for name, (judged, _, _) in found.items()
        if name != TARGET
    }
    adjusted = dict(zip(tests, holm([p for _, p in tests.values()]), strict=True))
    listed = []
    for name, (judged, final, drafting) in found.items():
        accepted = judged.accepted[:, drafting]
        gain = tests.get(name)
        listed.append(
            Candidate(
                name=name,
                rule=final.rule,
                temperature=final.temperature,
                draft_temperature=DRAFT_TEMPERATURES[drafting] if final.temperature else None,
                right=_mean(positions, score(judged.right), unique_solution),
                gain=None if gain is None else gain[0],
                p_value=None if gain is None else float(adjusted[name]),
                accepted=float(accepted.mean()),
                tokens_per_forward=tokens_per_forward(positions, accepted, gamma),
            )
        )
    listed.sort(key=lambda each: -each.right.value)
    better = [c for c in listed if c.gain and c.gain.low > 0 and (c.p_value or 0) < 1 - LEVEL]
    everywhere = np.ones(len(positions), dtype=bool)
    trials, nats = gate_trials(positions)
    return Tuning(
        texts=positions.n_texts,
        positions=len(positions),
        unique_solution=unique_solution,
        gamma=gamma,
        candidates=tuple(listed),
        best=better[0].name if better else TARGET,
        pool=fit_pool(positions, everywhere),
        by_texts=_by_texts(positions),
        trials=trials,
        nats=nats,
        outside=float((positions.right < 0).mean()),
    )


def tokens_per_forward(positions: Positions, accepted: Values, gamma: int) -> float:
    """Tokens per target forward if blocks of `gamma` were drafted along the texts.

    A block that begins at position i keeps j tokens with the product of their probabilities; f(i),
    the probability that one begins at i, follows from those before it. Blocks number their sum.
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


def _score(positions: Positions, unique_solution: bool) -> Score:
    return (lambda right: solved(positions, right)) if unique_solution else positions.by_text


def _mean(positions: Positions, by_text: Values, unique_solution: bool) -> Estimate:
    """A mean over texts; or over their positions, with texts as clusters."""
    ones = np.ones(positions.n_texts if unique_solution else len(positions))
    sizes = ones if unique_solution else positions.by_text(ones)
    return student(Clusters.of_sums(by_text, sizes, None), LEVEL)


def _gain(
    positions: Positions, own: Values, base: Values, unique_solution: bool
) -> tuple[Estimate, float]:
    found = _mean(positions, own - base, unique_solution)
    half = (found.high - found.low) / 2
    freedom = max(found.n_clusters - 1, 1)
    if half == 0:
        return found, float(found.value == 0)
    error = half / float(stats.t.ppf((1 + LEVEL) / 2, freedom))
    return found, float(2 * stats.t.sf(abs(found.value) / error, freedom))


def _judge(reading: Reading, fit: Fit, score: Score) -> tuple[Judged, Judged, int]:
    """A candidate at all positions, each by a fit of other texts; fitted on all; how it drafts."""
    folds, everywhere = folds_of(reading.positions), np.ones(len(reading.positions), dtype=bool)
    right = np.zeros(len(folds))
    accepted = np.zeros((len(folds), len(DRAFT_TEMPERATURES)))
    for fold in range(FOLDS):
        own = folds == fold
        judged = fit(~own)(own)
        right[own], accepted[own] = judged.right, judged.accepted
    final = fit(everywhere)(everywhere)
    # Drafting changes no text, so its temperature may be chosen on the texts that it is used on.
    drafting = int(final.accepted.mean(0).argmax())
    return replace(final, right=right, accepted=accepted), final, drafting


def _by_texts(positions: Positions) -> tuple[tuple[int, float, float, float], ...]:
    """B from a few texts, twice as many, and so on up to all."""
    counts, found = positions.n_texts, []
    sizes = [n for n in (counts // 8, counts // 4, counts // 2) if n >= 5]
    for number in [*sizes, counts]:
        fit = fit_pool(positions, positions.texts < number)
        if fit.b_low is not None and fit.b_high is not None:
            found.append((number, fit.b, fit.b_low, fit.b_high))
    return tuple(found)
