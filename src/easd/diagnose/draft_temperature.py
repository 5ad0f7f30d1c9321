"""The acceptance rate if drafts were drawn at other temperatures.

Lossless speculation of p accepts a token drawn from r with probability sum of min(p, r). The
proposal r is the draft's distribution at its own temperature, which does not change the law. So one
pass of both models over texts of the target measures every draft temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import numpy as np
import torch

from easd.diagnose.reference_pass import ReferenceText, read_steps
from easd.engine.pair import Pair
from easd.engine.sampling import raised
from easd.engine.settings import Settings
from easd.errors import ConfigError
from easd.stats import Estimate, bootstrap

# Draft temperatures, divided by the target's.
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.6, 2.0)
_OWN = SHARES.index(1.0)
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftTemperatures:
    """Acceptance by draft temperature, for texts of the target.

    Attributes:
        acceptance: probability that a draft token is accepted, at each of `temperatures`.
        best: the temperature with the highest acceptance, with an interval.
        gain: acceptance at the best minus acceptance at the target's own temperature; slightly too
            high, since the best was chosen on the same texts.
    """

    temperatures: tuple[float, ...]
    acceptance: tuple[Estimate, ...]
    best: Estimate
    gain: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def draft_temperatures(
    pair: Pair,
    texts: Sequence[ReferenceText],
    settings: Settings,
    on_progress: Callable[[int, int], None] | None = None,
) -> DraftTemperatures:
    """Measures acceptance at every draft temperature.

    Args:
        pair: with a draft model.
        texts: two or more texts of the target, with their prompts.
        settings: of the target.
        on_progress: called with positions done and positions in all.

    Raises:
        ConfigError: There is no draft model, or decoding is greedy.
    """
    if settings.temperature == 0:
        raise ConfigError(
            "temperature = 0: greedy decoding draws nothing, so the draft's temperature has no "
            "effect; give a temperature above 0"
        )
    sums = np.zeros((len(texts), len(SHARES)))
    counts = np.zeros(len(texts))
    for read in read_steps(pair, texts, settings, on_progress):
        target, draft = read.step.target_probs[:, :-1], read.step.draft_probs[:, :-1]
        numbers = read.batch.numbers
        counts[numbers] += read.there.sum(1).cpu().numpy()
        for place, share in enumerate(SHARES):
            proposal = draft if share == 1 else raised(draft, 1 / share if share else inf)
            overlap = torch.minimum(target, proposal).sum(-1) * read.there
            sums[numbers, place] += overlap.sum(1).double().cpu().numpy()
    return _estimates(sums, counts, settings.temperature)


def _estimates(sums: np.ndarray, counts: np.ndarray, temperature: float) -> DraftTemperatures:
    """Ratios of the sums of acceptance [texts, temperatures] and the positions [texts]."""
    temperatures = np.round(np.asarray(SHARES) * temperature, 6)

    def means(weights: np.ndarray) -> np.ndarray:
        return (weights @ sums) / (weights @ counts)[:, None]

    def estimate(statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        return bootstrap(statistic, len(counts), resamples=_RESAMPLES, n=int(counts.sum()))

    best = int(means(np.ones((1, len(counts))))[0].argmax())
    return DraftTemperatures(
        temperatures=tuple(map(float, temperatures)),
        acceptance=tuple(estimate(lambda w, i=i: means(w)[:, i]) for i in range(len(SHARES))),
        best=estimate(lambda w: temperatures[means(w).argmax(1)]),
        gain=estimate(lambda w: means(w)[:, best] - means(w)[:, _OWN]),
    )
