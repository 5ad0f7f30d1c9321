"""Warnings about fitted values that are judged on the items they were fitted on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from easd.errors import visible


def overlaps(run: dict[str, Any]) -> Iterator[str]:
    """A sentence for each task with items that a calibration was fitted on, from run.json."""
    for fitted in run.get("fitted", ()):
        for task, shared in fitted["overlap"].items():
            total, name = run["tasks"][task]["items"], visible(task)
            if shared is None:
                yield (
                    f"the {fitted['kind']} does not say which items it was fitted on; if on those "
                    f"of {name}, results on them are too good"
                )
            elif shared:
                yield (
                    f"the {fitted['kind']} was fitted on {shared:,} of the {total:,} items of "
                    f"{name}, so results on them are too good; judge on other items, such as "
                    f"--task {name}:FIRST-END"
                )
