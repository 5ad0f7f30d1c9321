"""What one request does to logits: transformers' processors, split by what they look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

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
# Those that never read a number from a tensor, for which a GPU would wait.
_UNREAD = (
    hf.TemperatureLogitsWarper,
    hf.TopKLogitsWarper,
    hf.TopPLogitsWarper,
    hf.MinPLogitsWarper,
)
_PREFIX_FREE = (*TRUNCATING, hf.LogitNormalization, hf.InfNanRemoveLogitsProcessor)


@dataclass(frozen=True, slots=True)
class NoEndBefore:
    """Bans the tokens `ends` in place from texts shorter than `length`, prompt included.

    transformers' equivalents compare them with every token of the vocabulary.
    """

    length: int
    ends: tuple[int, ...]

    @classmethod
    def replacing(cls, processor: Any) -> Processor:
        """`processor`, or its faster equivalent."""
        if type(processor) is hf.MinNewTokensLengthLogitsProcessor:
            length = processor.prompt_length_to_skip + processor.min_new_tokens
        elif type(processor) is hf.MinLengthLogitsProcessor:
            length = processor.min_length
        else:
            return processor
        return cls(length, tuple(processor.eos_token_id.reshape(-1).tolist()))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[-1] < self.length:
            for end in self.ends:
                scores[:, end : end + 1] = -inf  # empty where the model lacks the token
        return scores


@dataclass(frozen=True, slots=True)
class Processing:
    """The logits processors of a request, and how tokens are drawn.

    Attributes:
        processors: applied in order.
        greedy: whether to take the most probable token.
        proposal_power: draft tokens are drawn from the draft's distribution raised to this power,
            unless greedy; infinity takes its most probable token.
        kind: equal for requests whose `warpers` can run as one batch.
    """

    processors: tuple[Processor, ...] = ()
    greedy: bool = False
    proposal_power: float = 1.0
    kind: tuple[bool, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        faster = tuple(NoEndBefore.replacing(processor) for processor in self.processors)
        object.__setattr__(self, "processors", faster)
        warpers = repr([(type(warper), vars(warper)) for warper in self.warpers])
        object.__setattr__(self, "kind", (self.greedy, warpers))

    @property
    def warpers(self) -> tuple[Processor, ...]:
        """The trailing processors that never look at the prefix."""
        return self.processors[self._split :]

    @property
    def reads_nothing(self) -> bool:
        """Whether no warper reads a number from a tensor."""
        return all(isinstance(warper, _UNREAD) for warper in self.warpers)

    def prefixed(self, length: int) -> tuple[Processor, ...]:
        """The processors up to the last that may look at the prefix, if they act at this length."""
        before = self.processors[: self._split]
        return tuple(p for p in before if not isinstance(p, NoEndBefore) or length < p.length)

    @property
    def _split(self) -> int:
        last = len(self.processors)
        while last > 0 and isinstance(self.processors[last - 1], _PREFIX_FREE):
            last -= 1
        return last
