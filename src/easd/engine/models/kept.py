"""What an engine leaves to the next one of the same model: graphs, and the slots that they use.

Recording the graphs of a pair of 7B and 0.5B takes as long as a dozen steps, and calls of
`generate` are often short.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

from easd.engine.models.cache import SlotCache
from easd.engine.models.graphs import Graphs, Structure

_MOST_BYTES = 2**30
"""Of slots that are kept, so that a finished call does not hold memory that its user misses."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Graphs, the slots that they use, and the model as it was when they were recorded."""

    graphs: Graphs
    cache: SlotCache
    structure: Structure


# Nothing here may refer to the model itself, which would then never be freed.
_kept: WeakKeyDictionary[nn.Module, tuple[Hashable, Kept]] = WeakKeyDictionary()


def keep(model: nn.Module, kind: Hashable, kept: Kept) -> None:
    """Keeps the graphs of a model for the next `take` of an equal kind, unless it is too much."""
    if kept.cache.nbytes <= _MOST_BYTES:
        _kept[model] = kind, kept


def take(model: nn.Module, kind: Hashable) -> Kept | None:
    """What was last kept, if it is of this kind and the model has not changed since."""
    of_kind, kept = _kept.pop(model, (None, None))
    if kept is None or of_kind != kind or kept.structure.has_changed():
        return None
    return kept
