"""How many draft tokens would be accepted if they were drawn at other temperatures.

Speculative sampling towards p accepts a token drawn from r with probability sum of min(p, r). The
proposal r is the draft's distribution at a temperature of its own, and leaves the law as it is: so
one pass of both models over texts of the target measures every draft temperature at once.
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

# Draft temperatures as shares of the target's.
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.6, 2.0)
_OWN = SHARES.index(1.0)
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftTemperatures:
    """Acceptance by draft temperature, for texts of the target.

    Attributes:
        temperatures: tried, as `Settings.draft_temperature` takes them.
        acceptance: probability that a draft token is accepted at each.
        best: the temperature with the highest acceptance; its interval says how sure the choice is.
        gain: acceptance at the best minus acceptance at the target's own temperature. It was chosen
            on these texts, so it is a little too high.
    """

    temperatures: tuple[float, ...]
    acceptance: tuple[Estimate, ...]
    best: Estimate
    gain: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
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
        settings: what the target is sampled with; its temperature is not 0.
        on_progress: called with positions done and positions in all.

    Raises:
        ConfigError: There is no draft model, or decoding is greedy.
    """
    if settings.temperature == 0:
        raise ConfigError(
            "greedy decoding draws nothing, so drafts have no temperature of their own"
        )
    sums = np.zeros((len(texts), len(SHARES)))
    counts = np.zeros(len(texts))
    total = sum(len(reference) for _, reference, _ in texts)
    for read in read_steps(pair, texts, settings):
        target, draft = read.step.target_probs[:, :-1], read.step.draft_probs[:, :-1]
        numbers = read.batch.numbers
        counts[numbers] += read.there.sum(1).cpu().numpy()
        for place, share in enumerate(SHARES):
            proposal = draft if share == 1 else raised(draft, 1 / share if share else inf)
            overlap = torch.minimum(target, proposal).sum(-1) * read.there
            sums[numbers, place] += overlap.sum(1).double().cpu().numpy()
        if on_progress is not None:
            on_progress(int(counts.sum()), total)
    return _estimates(sums, counts, settings.temperature)


def _estimates(sums: np.ndarray, counts: np.ndarray, temperature: float) -> DraftTemperatures:
    """From sums of acceptance [texts, temperatures] and positions [texts]."""
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
