"""What was fitted on some items and is judged on them too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from easd.errors import visible


def overlaps(run: dict[str, Any]) -> Iterator[str]:
    """A sentence for each task of an evaluation with items that a calibration was fitted on.

    Args:
        run: the content of run.json.
    """
    for fitted in run.get("fitted", ()):
        for task, shared in fitted["overlap"].items():
            total, name = run["tasks"][task]["items"], visible(task)
            if shared is None:
                yield (
                    f"the {fitted['kind']} does not say which items it was fitted on; if it was on "
                    f"those of {name}, what it fills in looks better on them than it is"
                )
            elif shared:
                yield (
                    f"{shared:,} of the {total:,} items of {name} are among those that the "
                    f"{fitted['kind']} was fitted on: what it fills in looks better on them than "
                    f"it is; judge on other items, such as --task {name}:FIRST-END"
                )
