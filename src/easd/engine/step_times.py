"""Measured times of steps and of prompts, from which `gamma="auto"` chooses."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt

SETTLED = 8  # Samples after which a time is taken to move only with those of other lengths.
_PROMPT_WINDOW = 1000  # Steps after which the reading of a prompt counts 1/e.
_LONGEST_WAIT = 64  # Steps from one trial of a length to the next.


@dataclass(slots=True)
class StepTimes:
    """Seconds of a step by number of draft tokens, with about one number of rows.

    Attributes:
        seconds: mean of each number, of recent steps.
        samples: how many steps each mean is of; 0 where it comes from another number of rows.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    samples: dict[int, int] = field(default_factory=dict)
    _variance: float = 0.01  # Of a step's time over its mean.
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
        if count:
            spread = (min(seconds / known, 2) - 1) ** 2
            self._variance += max(0.05, 1 / (self._steps + 4)) * (spread - self._variance)
        found = known + share * (min(seconds, 2 * known if count else seconds) - known)
        scale = found / known
        for other in self.seconds:
            if count >= SETTLED or (count == 0 and not self.samples.get(other)):
                self.seconds[other] *= scale
        self.seconds[gamma] = found

    def doubt(self, *gammas: int) -> float:
        """Relative standard error of a time, or of the ratio of two."""
        samples = (min(10, max(1, self.samples.get(gamma, 0))) for gamma in gammas)
        return sqrt(self._variance * sum(1 / count for count in samples))

    def try_again_later(self, gamma: int) -> None:
        """Counts a number as tried, even if no text has room for as many."""
        self._last[gamma] = self._steps

    def is_due(self, gamma: int) -> bool:
        """Whether a number should be timed again; the less so, the better it is known."""
        wait = min(_LONGEST_WAIT, 1 << self.samples.get(gamma, 0))
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


@dataclass(slots=True)
class PromptTimes:
    """Seconds in which the draft reads prompts, per token of a row; forgets old texts."""

    _seconds: float = 0.0
    _tokens: float = 0.0

    def add(self, seconds: float, tokens: float) -> None:
        """Adds a step. The first texts are read whatever is chosen and do not count."""
        forgotten = 1 - 1 / _PROMPT_WINDOW
        self._seconds = self._seconds * forgotten + (seconds if self._tokens else 0.0)
        self._tokens = self._tokens * forgotten + tokens

    @property
    def seconds_per_token(self) -> float:
        return self._seconds / self._tokens if self._tokens else 0.0
