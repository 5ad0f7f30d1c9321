"""One text to decode, and its state while it is being decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from easd.core.couplings import Coupling
from easd.core.noise import request_key
from easd.core.rules import Rule
from easd.engine.processing import Processing

FinishReason = Literal["eos", "stop", "length"]
Criterion = Callable[[Tensor, None], Tensor | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and everything that is its own.

    Attributes:
        prompt: token ids, at least one.
        number, seed: key the request's randomness; the same pair gives the same text whatever
            else is decoded beside it.
        max_new_tokens: at least one.
        eos: ids that end the text.
        rule: how its draft tokens are judged; unless given by the engine's rule. Both must run the
            same models and agree on whether they evaluate the bonus position.
        processing: what is done to logits before sampling.
        criteria: more ways to stop, each asked after every token with the text so far [1, L].
        padding: ids to the left of the prompt that processors and criteria see, but no model.
        keep_scores: whether to keep the target's processed scores of every emitted token.
        coupling: how its blocks are verified; unless given the engine's, or the rule's default.
            Noise is shared by all of an engine's requests or by none.
        wants_raw: whether its steps carry the target's raw probabilities for any rule.
    """

    prompt: tuple[int, ...]
    number: int = 0
    seed: int = 0
    max_new_tokens: int = 256
    eos: frozenset[int] = frozenset()
    rule: Rule | None = None
    coupling: Coupling | None = None
    processing: Processing = field(default_factory=Processing)
    criteria: tuple[Criterion, ...] = ()
    padding: tuple[int, ...] = ()
    keep_scores: bool = False
    wants_raw: bool = False


@dataclass(slots=True, kw_only=True)
class Counts:
    """What happened to one request's draft tokens."""

    blocks: int = 0
    proposed: int = 0
    examined: int = 0
    accepted: int = 0
    penalised: int = 0

    def add(self, *, proposed: int, accepted: int, penalised: bool, kept: int) -> None:
        """Counts a block of which the text kept `kept` tokens; what follows its end is nothing."""
        self.blocks += 1
        self.proposed += proposed
        self.accepted += min(accepted, kept)
        self.examined += min(proposed, kept)
        self.penalised += penalised and kept > accepted


@dataclass(slots=True)
class Row:
    """A request in a batch."""

    request: Request
    ids: list[int]
    key: int
    counts: Counts = field(default_factory=Counts)
    scores: list[Tensor] = field(default_factory=list)
    finished: FinishReason | None = None

    @classmethod
    def start(cls, request: Request) -> Row:
        key = request_key(request.seed, request.number)
        return cls(request, list(request.prompt), key)

    @property
    def new_ids(self) -> list[int]:
        """The tokens decoded so far."""
        return self.ids[len(self.request.prompt) :]

    @property
    def remaining(self) -> int:
        """How many tokens may still be decoded."""
        return self.request.max_new_tokens - (len(self.ids) - len(self.request.prompt))

    @property
    def text(self) -> list[int]:
        """What processors and criteria see."""
        return [*self.request.padding, *self.ids]

    def positions(self, drafted: Sequence[int]) -> int:
        """How many positions the text may come to if it goes on with `drafted`.

        The first follows the text so far, the next the first drafted token, and so on; behind an
        end-of-sequence token or the last token allowed there is none.
        """
        for count, token in enumerate(drafted, 1):
            if count == self.remaining or token in self.request.eos:
                return count
        return len(drafted) + 1

    def extend(self, tokens: Sequence[int]) -> int:
        """Appends tokens up to the first that ends the text; returns how many were kept."""
        for count, token in enumerate(tokens, 1):
            self.ids.append(token)
            self.finished = self._reason(token)
            if self.finished:
                return count
        return len(tokens)

    def _reason(self, token: int) -> FinishReason | None:
        if token in self.request.eos:
            return "eos"
        if self.request.criteria:
            text = torch.tensor([self.text])
            if any(bool(criterion(text, None)) for criterion in self.request.criteria):
                return "stop"
        return None if self.remaining else "length"
