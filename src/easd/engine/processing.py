"""What is done to a request's logits before a token is drawn: its processors, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from transformers.generation import logits_process as hf

Processor = Callable[..., Tensor]  # a transformers LogitsProcessor: (input_ids, scores)

TRUNCATING = (
    hf.TemperatureLogitsWarper,
    hf.TopKLogitsWarper,
    hf.TopPLogitsWarper,
    hf.TopHLogitsWarper,
    hf.MinPLogitsWarper,
    hf.TypicalLogitsWarper,
    hf.EpsilonLogitsWarper,
    hf.EtaLogitsWarper,
)
_PREFIX_FREE = (*TRUNCATING, hf.LogitNormalization, hf.InfNanRemoveLogitsProcessor)


@dataclass(frozen=True, slots=True)
class Processing:
    """What one request does to logits.

    Attributes:
        processors: in order.
        greedy: whether the most probable token is taken.
        kind: equal for requests that can go through `warpers` together.
    """

    processors: tuple[Processor, ...] = ()
    greedy: bool = False
    kind: tuple[bool, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        warpers = repr([(type(warper), vars(warper)) for warper in self.warpers])
        object.__setattr__(self, "kind", (self.greedy, warpers))

    @property
    def warpers(self) -> tuple[Processor, ...]:
        """The tail of the processors that never looks at the prefix."""
        return self.processors[self._split :]

    @property
    def prefixed(self) -> tuple[Processor, ...]:
        """The processors up to the last one that may look at the prefix."""
        return self.processors[: self._split]

    @property
    def _split(self) -> int:
        last = len(self.processors)
        while last > 0 and isinstance(self.processors[last - 1], _PREFIX_FREE):
            last -= 1
        return last
