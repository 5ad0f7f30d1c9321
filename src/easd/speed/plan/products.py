"""Measured matrix products: what one takes by its rows and by the size of its matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from easd.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductTable:
    """Seconds of a product, interpolated between what was measured, all three on a log scale.

    A small matrix costs its call and a large one its bytes, so both ends are measured. Past the
    largest matrix or the most rows seconds grow in proportion; below the least they stay.

    Attributes:
        rows: vectors multiplied at once, growing.
        entries: of the matrix, growing.
        seconds: [rows][entries].
    """

    rows: tuple[int, ...]
    entries: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if [len(row) for row in self.seconds] != [len(self.entries)] * len(self.rows):
            raise ConfigError(
                f"products need {len(self.rows)} lists of {len(self.entries)} seconds: for each "
                "number of rows the seconds of every size"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Sequence]) -> ProductTable:
        """Reads lists as a file has them."""
        rows = tuple(tuple(float(seconds) for seconds in row) for row in values["seconds"])
        return cls(
            rows=tuple(map(int, values["rows"])),
            entries=tuple(map(int, values["entries"])),
            seconds=rows,
        )

    def product(self, entries: float, rows: float) -> float:
        """Seconds to multiply `rows` vectors with one matrix."""
        by_rows = [
            np.interp(np.log(entries), np.log(self.entries), np.log(row)) for row in self.seconds
        ]
        seconds = np.exp(np.interp(np.log(rows), np.log(self.rows), by_rows))
        beyond = max(1.0, entries / self.entries[-1]) * max(1.0, rows / self.rows[-1])
        return float(seconds * beyond)

    def operations_per_second(self) -> float:
        """Of the largest product."""
        return 2 * self.rows[-1] * self.entries[-1] / self.seconds[-1][-1]
