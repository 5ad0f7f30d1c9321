"""Chooses the number of draft tokens of each block while decoding: `gamma="auto"`.

A block of g draft tokens yields 1 + a_1 + a_1 a_2 + ... + a_1 ... a_g tokens, where a_i is the
acceptance rate of its i-th token, and takes the time that such steps took with about as many rows.
The g with the most tokens a second is drafted; 0 decodes with the target alone. Other g are tried
again from time to time, as long as that takes no more than half a hundredth of the time.

A choice knows times and outcomes of earlier blocks, and every block has numbers of its own
(`Noise.fresh`), so that each token keeps its law whatever is chosen. A decode begins with what the
last one of its kind learnt, and so with other keys than the same requests had there.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import accumulate
from math import log2, sqrt
from operator import mul
from weakref import WeakKeyDictionary

from easd.core.noise import request_key
from easd.engine.step_times import SETTLED, PromptTimes, StepTimes

MOST_AUTO_GAMMA = 8
_FIRST = 2  # Costs little even where nothing should be drafted, and shows both cost and acceptance.
_TRIALS = 0.005  # Share of the time that trying other lengths may cost.
_REST = 3  # Steps without a choice once times are settled: a choice takes tens of microseconds.
_GAIN = 1.01  # Ratio of speeds from which another length is worth a change.
_WINDOW = 200  # Blocks of a text after which an outcome counts 1/e.
_PRIOR_RATE, _PRIOR_BLOCKS = 0.7, 4  # Acceptance before anything is known, and its weight.
_MOST_KINDS = 8  # Of decodes of a target that are remembered.


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
        decodes: how many have ended since it began to learn.
    """

    def __init__(self, most: int = MOST_AUTO_GAMMA, *, draft_at_bonus: bool = False) -> None:
        self.most = most
        self.gamma = min(_FIRST, most)
        self.decodes = 0
        self._always_drafts = draft_at_bonus
        self._acceptance = _Acceptance(most)
        self._costs: dict[int, StepTimes] = {}
        self._budget = 0.0  # Seconds left for trials.
        self._catching_up: float | None = None  # Seconds to read a token of every row.
        self._prompts = PromptTimes()
        self._rested = 0  # Steps since the last choice.

    @property
    def paused(self) -> bool:
        """Whether the draft need not read texts until it is asked again."""
        return self.gamma == 0 and not self._always_drafts

    def fresh_key(self, key: int) -> int:
        """The key for a request with this one, of which it does not know any outcome."""
        return request_key(key, self.decodes) if self.decodes else key

    def choose(self, rows: int, behind: int = 0) -> int:
        """The number of tokens to draft for each of `rows` rows.

        Args:
            behind: number of tokens of the rows' texts that the draft must read first, at most.
        """
        costs = self._costs_with(rows)
        if self._rested < _REST and costs.samples.get(self.gamma, 0) >= SETTLED:
            self._rested += 1
            return self.gamma
        self._rested = 0
        for first in (min(_FIRST, self.most), 0):
            if first not in costs.seconds:
                return first
        times = costs.forecast(self.most)
        tokens = expected_tokens(self._acceptance.rates)
        speeds = self._speeds(times, tokens)
        self.gamma = self._best(speeds, times, costs)
        return self._trial(costs, times, tokens, speeds[self.gamma], behind)

    def observe(
        self,
        rows: int,
        blocks: Sequence[tuple[int, int]],
        seconds: float,
        *,
        behind: int = 0,
        reading: float = 0.0,
    ) -> None:
        """Learns from a step with `rows` rows that took `seconds`.

        Args:
            blocks: for each row, the number of draft tokens asked for, and of tokens that its text
                gained.
            behind: as in `choose`.
            reading: seconds before the step in which the draft read prompts.
        """
        if not blocks:
            return
        gamma = max(asked for asked, _ in blocks)
        self._acceptance.add(blocks)
        if not self.paused:
            self._prompts.add(reading, sum(gained for _, gained in blocks) / len(blocks))
        self._budget += _TRIALS * seconds
        costs = self._costs_with(rows)
        if gamma and self._catches_up(behind):
            usual = costs.seconds.get(gamma, seconds)
            self._catching_up = max(0.0, seconds - usual) / behind
        else:
            costs.add(gamma, seconds)

    def _speeds(self, times: Sequence[float], tokens: Sequence[float]) -> list[float]:
        """Tokens of a row a second; where drafts read prompts, the time of that counts too."""
        prompts = 0.0 if self._always_drafts else self._prompts.seconds_per_token
        found = [
            count / (time + count * prompts) for time, count in zip(times, tokens, strict=False)
        ]
        return [1 / times[0], *found[1:]]

    def _best(self, speeds: Sequence[float], times: Sequence[float], costs: StepTimes) -> int:
        """The fastest number, unless it is hardly faster than the present one."""
        best = max(range(len(speeds)), key=speeds.__getitem__)
        present = self.gamma
        if present < len(speeds) and speeds[best] < _GAIN * speeds[present]:
            return present
        if best == 0:  # Without drafts nothing more is learnt of them, so the doubt is theirs.
            hoped = self._speeds(times, expected_tokens(self._acceptance.hopeful))
            rival = max(range(1, len(speeds)), key=speeds.__getitem__)
            if hoped[rival] * (1 + costs.doubt(0, rival)) > speeds[0]:
                return rival
        return best

    def _trial(
        self,
        costs: StepTimes,
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
            known = self._catching_up
            a_token = (times[1] - times[0]) / 4 if known is None else known
            losses = {g: loss + behind * max(0.0, a_token) for g, loss in losses.items()}
        affordable = [g for g, loss in losses.items() if loss <= self._budget]
        if not affordable:
            return self.gamma
        hoped = self._speeds(times, expected_tokens(self._acceptance.hopeful))
        chosen = max(affordable, key=lambda g: hoped[g] * (1 + costs.doubt(g)))
        self._budget -= losses[chosen]
        costs.try_again_later(chosen)
        return chosen

    def _catches_up(self, behind: int) -> bool:
        """Whether the draft's first forward reads more than a block."""
        return behind > self.most + 1

    def _costs_with(self, rows: int) -> StepTimes:
        """The times with about as many rows; at first those with the nearest number."""
        place = round(2 * log2(rows))
        if place not in self._costs:
            nearest = min(self._costs, key=lambda other: abs(other - place), default=None)
            self._costs[place] = found = StepTimes()
            if nearest is not None:
                found.seconds = dict(self._costs[nearest].seconds)
                self._budget += found.seconds.get(self.gamma, 0.0)
        return self._costs[place]


_learnt: WeakKeyDictionary[object, dict[Hashable, AutoGamma]] = WeakKeyDictionary()


def remember(target: object, kind: Hashable, auto: AutoGamma) -> None:
    """Keeps what a decode of this kind has learnt for the target's next one."""
    auto.decodes += 1
    kinds = _learnt.setdefault(target, {})
    kinds[kind] = auto
    if len(kinds) > _MOST_KINDS:
        del kinds[next(iter(kinds))]


def recall(target: object, kind: Hashable) -> AutoGamma | None:
    """What was last learnt, if anything was; nobody else gets it until it is remembered again."""
    return _learnt.get(target, {}).pop(kind, None)


class _Acceptance:
    """Acceptance rates by position in the block, which forget old blocks.

    A draft token counts as accepted if it is and the text goes on; one that was asked for and not
    proposed does not. So the rates say how many tokens a text gains.
    """

    def __init__(self, most: int) -> None:
        self._examined = [0.0] * most
        self._accepted = [0.0] * most

    def add(self, blocks: Sequence[tuple[int, int]]) -> None:
        """Adds a step's blocks."""
        if not any(asked for asked, _ in blocks):
            return
        remembered = 1 - min(len(blocks) / _WINDOW, 0.5)
        self._examined = [count * remembered for count in self._examined]
        self._accepted = [count * remembered for count in self._accepted]
        for asked, gained in blocks:
            for position in range(min(asked, gained)):
                self._examined[position] += 1
                self._accepted[position] += position + 1 < gained

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
