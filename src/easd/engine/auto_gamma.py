"""Chooses the number of draft tokens of each block while decoding: `gamma="auto"`.

A block of g draft tokens yields 1 + a_1 + a_1 a_2 + ... + a_1 ... a_g tokens, where a_i is the
acceptance rate of its i-th token, and takes the time that such steps took with about as many rows.
The g with the most tokens a second is drafted; 0 decodes with the target alone. Other g are tried
again from time to time, as long as that takes no more than a hundredth of the time.

A choice knows times and outcomes of earlier blocks, and every block has numbers of its own
(`Noise.fresh`), so that each token keeps its law whatever is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import log2, sqrt
from operator import mul

MOST_AUTO_GAMMA = 8
_FIRST = 2  # Costs little even where nothing should be drafted, and shows both cost and acceptance.
_TRIALS = 0.01  # Share of the time that trying other lengths may cost.
_GAIN = 1.01  # Ratio of speeds from which another length is worth a change.
_WINDOW = 200  # Blocks of a text after which an outcome counts 1/e.
_PRIOR_RATE, _PRIOR_BLOCKS = 0.7, 4  # Acceptance before anything is known, and its weight.
_SETTLED = 8  # Samples after which a time is taken to move only with those of other lengths.
_LONGEST_WAIT = 64  # Steps from one trial of a length to the next.


def expected_tokens(rates: Iterable[float]) -> list[float]:
    """Expected tokens of blocks of 0, 1, 2, ... draft tokens with these acceptance rates."""
    return list(accumulate(accumulate(rates, mul), initial=1.0))


class AutoGamma:
    """Chooses the next block's number of draft tokens; deterministic, given what it observes.

    Args:
        most: maximum number of draft tokens.
        draft_at_bonus: whether the draft is evaluated at every position whatever is chosen.

    Attributes:
        gamma: the best number found so far. A step may try another.
    """

    def __init__(self, most: int = MOST_AUTO_GAMMA, *, draft_at_bonus: bool = False) -> None:
        self.most = most
        self.gamma = min(_FIRST, most)
        self._always_drafts = draft_at_bonus
        self._acceptance = _Acceptance(most)
        self._costs: dict[int, _Costs] = {}
        self._budget = 0.0  # Seconds left for trials.
        self._reading: float | None = None  # Seconds in which the draft reads a token of every row.

    @property
    def paused(self) -> bool:
        """Whether the draft need not read texts until it is asked again."""
        return self.gamma == 0 and not self._always_drafts

    def choose(self, rows: int, behind: int = 0) -> int:
        """The number of tokens to draft for each of `rows` rows.

        Args:
            behind: number of tokens of the rows' texts that the draft must read first, at most.
        """
        costs = self._costs_with(rows)
        for first in (min(_FIRST, self.most), 0):
            if first not in costs.seconds:
                return first
        times = costs.forecast(self.most)
        tokens = expected_tokens(self._acceptance.rates)
        speeds = [count / time for count, time in zip(tokens, times, strict=False)]
        self.gamma = self._best(speeds, times)
        return self._trial(costs, times, tokens, speeds[self.gamma], behind)

    def observe(
        self, rows: int, blocks: Sequence[tuple[int, int, int]], seconds: float, behind: int = 0
    ) -> None:
        """Learns from a step with `rows` rows that took `seconds`.

        Args:
            blocks: for each row, the number of draft tokens asked for, how many were accepted, and
                how many tokens the text kept.
            behind: as in `choose`.
        """
        if not blocks:
            return
        gamma = max(asked for asked, _, _ in blocks)
        self._acceptance.add(blocks)
        self._budget += _TRIALS * seconds
        costs = self._costs_with(rows)
        if gamma and self._catches_up(behind):
            usual = costs.seconds.get(gamma, seconds)
            self._reading = max(0.0, seconds - usual) / behind
        else:
            costs.add(gamma, seconds)

    def _best(self, speeds: Sequence[float], times: Sequence[float]) -> int:
        """The fastest number, unless it is hardly faster than the present one."""
        best = max(range(len(speeds)), key=speeds.__getitem__)
        present = self.gamma
        if present < len(speeds) and speeds[best] < _GAIN * speeds[present]:
            return present
        if best == 0:  # Without drafts nothing more is learnt of them, so the doubt is theirs.
            hoped = expected_tokens(self._acceptance.hopeful)
            if any(hoped[g] / times[g] > speeds[0] for g in range(1, len(speeds))):
                return max(range(1, len(speeds)), key=speeds.__getitem__)
        return best

    def _trial(
        self,
        costs: _Costs,
        times: Sequence[float],
        tokens: Sequence[float],
        speed: float,
        behind: int,
    ) -> int:
        """Another number than the best one, if one is due and the budget allows, else the best."""
        losses = {
            g: max(0.0, times[g] - tokens[g] / speed)
            for g in range(len(times))
            if g != self.gamma and costs.is_due(g)
        }
        if self.gamma == 0 and self._catches_up(behind):
            a_token = (times[1] - times[0]) / 4 if self._reading is None else self._reading
            losses = {g: loss + behind * max(0.0, a_token) for g, loss in losses.items()}
        if losses:
            cheapest = min(losses, key=losses.__getitem__)
            if losses[cheapest] <= self._budget:
                self._budget -= losses[cheapest]
                return cheapest
        return self.gamma

    def _catches_up(self, behind: int) -> bool:
        """Whether the draft's first forward reads more than a block."""
        return behind > self.most + 1

    def _costs_with(self, rows: int) -> _Costs:
        """The times with about as many rows; at first those with the nearest number."""
        place = round(2 * log2(rows))
        if place not in self._costs:
            nearest = min(self._costs, key=lambda other: abs(other - place), default=None)
            self._costs[place] = found = _Costs()
            if nearest is not None:
                found.seconds = dict(self._costs[nearest].seconds)
                self._budget += found.seconds.get(self.gamma, 0.0)
        return self._costs[place]


class _Acceptance:
    """Acceptance rates by position in the block, which forget old blocks."""

    def __init__(self, most: int) -> None:
        self._examined = [0.0] * most
        self._accepted = [0.0] * most

    def add(self, blocks: Sequence[tuple[int, int, int]]) -> None:
        """Adds a step's blocks; a token that was asked for and not proposed is not accepted.

        Only what became part of a text counts.
        """
        if not any(asked for asked, _, _ in blocks):
            return
        kept = 1 - min(len(blocks) / _WINDOW, 0.5)
        self._examined = [count * kept for count in self._examined]
        self._accepted = [count * kept for count in self._accepted]
        for asked, accepted, length in blocks:
            for position in range(min(asked, length)):
                self._examined[position] += 1
                self._accepted[position] += position < accepted

    @property
    def rates(self) -> list[float]:
        """Each position's rate; one that was seldom examined has that of the position before."""
        found, rate = [], _PRIOR_RATE
        for examined, accepted in zip(self._examined, self._accepted, strict=True):
            rate = (accepted + _PRIOR_BLOCKS * rate) / (examined + _PRIOR_BLOCKS)
            found.append(rate)
        return found

    @property
    def hopeful(self) -> list[float]:
        """The rates, each a standard error higher."""
        return [
            min(1.0, rate + sqrt(rate * (1 - rate) / (examined + _PRIOR_BLOCKS)))
            for rate, examined in zip(self.rates, self._examined, strict=True)
        ]


@dataclass(slots=True)
class _Costs:
    """Seconds of a step by number of draft tokens, with about one number of rows.

    Attributes:
        seconds: mean of each number, of recent steps.
        samples: how many steps each mean is of; 0 where it comes from another number of rows.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    samples: dict[int, int] = field(default_factory=dict)
    _steps: int = 0
    _last: dict[int, int] = field(default_factory=dict)

    def add(self, gamma: int, seconds: float) -> None:
        """Adds a step. Where a settled time changes, all do: texts grow, and machines slow down."""
        seconds = max(seconds, 1e-9)
        self._steps += 1
        self._last[gamma] = self._steps
        count = self.samples.get(gamma, 0)
        self.samples[gamma] = count + 1
        known = self.seconds.get(gamma)
        if known is None:
            self.seconds[gamma] = seconds
            return
        # An outlier counts as twice the mean.
        share = 1.0 if count == 0 else max(0.1, 1 / (count + 1))
        found = known + share * (min(seconds, 2 * known if count else seconds) - known)
        scale = found / known
        for other in self.seconds:
            if count >= _SETTLED or (count == 0 and not self.samples.get(other)):
                self.seconds[other] *= scale
        self.seconds[gamma] = found

    def is_due(self, gamma: int) -> bool:
        """Whether a number should be timed again; the less so, the better it is known."""
        wait = min(_LONGEST_WAIT, 4 << self.samples.get(gamma, 0))
        return gamma not in self._last or self._steps - self._last[gamma] >= wait

    def forecast(self, most: int) -> list[float]:
        """Seconds of a step with 0, 1, ... draft tokens, up to twice as many as were timed.

        Linear between the numbers that were timed, and beyond them.
        """
        known = sorted(self.seconds)
        found = [self.seconds[0]]
        slope = 0.0
        for low, high in pairwise(known):
            slope = (self.seconds[high] - self.seconds[low]) / (high - low)
            found += [self.seconds[high] - (high - g) * slope for g in range(low + 1, high + 1)]
        last, reach = known[-1], min(most, 2 * known[-1])
        return found + [
            found[-1] + (g - last) * max(0.0, slope) for g in range(last + 1, reach + 1)
        ]
