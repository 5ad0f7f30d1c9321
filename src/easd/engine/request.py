"""A text to decode, and its state during decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from easd.core.couplings import Coupling
from easd.core.noise import request_key
from easd.core.rules import Rule, as_rule
from easd.engine.processing import Processing

FinishReason = Literal["eos", "stop", "length", "error"]
Criterion = Callable[[Tensor, None], Tensor | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt and everything that may differ between requests.

    Attributes:
        prompt: token ids, at least one.
        draft_prompt: the prompt in the draft's tokens, if its tokenizer differs and it should read
            another text than the target.
        number, seed: key all randomness of the request, so its text does not depend on its batch.
        max_new_tokens: at least one.
        eos: ids that end the text.
        rule: None for the engine's rule. Both must run the same models and agree on whether the
            draft is evaluated at the bonus position.
        processing: the logits processors.
        criteria: further stopping criteria, called after every token with the text so far [1, L].
        padding: ids left of the prompt that only processors and criteria see.
        keep_scores: keep the target's processed scores of every emitted token.
        coupling: None for the engine's, or else the rule's default. Either all requests of an
            engine share noise or none.
        exact_first: number of first tokens that are drawn from the target.
        markers: ids of the tokens that begin and end reasoning, outside which the rule does not
            apply; None if it applies everywhere.
        wants_raw: record the target's raw probabilities even if the rule does not need them.
    """

    prompt: tuple[int, ...]
    draft_prompt: tuple[int, ...] | None = None
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
    exact_first: int = 0
    markers: tuple[int, int] | None = None
    wants_raw: bool = False

    def __post_init__(self) -> None:
        if self.rule is not None:
            object.__setattr__(self, "rule", as_rule(self.rule))

    @property
    def scoped(self) -> bool:
        """Whether the rule applies only to part of the text."""
        return self.exact_first > 0 or self.markers is not None


@dataclass(slots=True, kw_only=True)
class Counts:
    """Numbers of blocks (target forwards) and of draft tokens by outcome."""

    blocks: int = 0
    proposed: int = 0
    examined: int = 0
    accepted: int = 0
    penalised: int = 0

    def add(self, *, proposed: int, accepted: int, penalised: bool, kept: int) -> None:
        """Adds a block of which the text kept the first `kept` tokens."""
        self.blocks += 1
        self.proposed += proposed
        self.accepted += min(accepted, kept)
        self.examined += min(proposed, kept)
        self.penalised += penalised and kept > accepted

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            **{name: count + getattr(other, name) for name, count in asdict(self).items()}
        )

    def __sub__(self, other: Counts) -> Counts:
        return Counts(
            **{name: count - getattr(other, name) for name, count in asdict(self).items()}
        )


@dataclass(slots=True)
class Row:
    """The state of a request that is being decoded.

    Attributes:
        ids: the prompt and the tokens decoded so far.
        key: of its noise.
        counts: of its draft tokens so far.
        scores: the target's, if the request keeps them.
        finished: why the text ended.
        reasoning: whether the text is within reasoning markers.
        error: the cause if the text failed.
        unread: the prompt's tokens still to be cached, for each model in its vocabulary. The last
            token never is, since forwards begin there.
        served: number of cached prompt tokens, counted from the most of the rows waiting when this
            one arrived.
        num_read: number of tokens of the text that the draft has read.
        draft: the drafter's state of the row.
    """

    request: Request
    ids: list[int]
    key: int
    counts: Counts = field(default_factory=Counts)
    scores: list[Tensor] = field(default_factory=list)
    finished: FinishReason | None = None
    reasoning: bool = False
    error: Exception | None = None
    unread: list[list[int]] = field(default_factory=list)
    served: int = 0
    num_read: int = 0
    draft: Any = None

    @classmethod
    def start(cls, request: Request) -> Row:
        key = request_key(request.seed, request.number)
        row = cls(request, list(request.prompt), key)
        row.reasoning = row._reasons_after(row.ids, False)
        return row

    @property
    def new_ids(self) -> list[int]:
        """Ids of the tokens decoded so far."""
        return self.ids[len(self.request.prompt) :]

    @property
    def remaining(self) -> int:
        """Number of tokens that may still be decoded."""
        return self.request.max_new_tokens - (len(self.ids) - len(self.request.prompt))

    def fail(self, error: Exception) -> None:
        """Ends the text with an error; only the first is kept."""
        if self.error is None:
            self.error = error
            self.finished = "error"

    @property
    def text(self) -> list[int]:
        """Token ids as processors and criteria see them."""
        return [*self.request.padding, *self.ids]

    def positions(self, drafted: Sequence[int]) -> int:
        """How many positions the text can reach if it continues with `drafted`.

        Position k follows the first k drafted tokens. Nothing follows an end-of-sequence token or
        the last token allowed.
        """
        for count, token in enumerate(drafted, 1):
            if count == self.remaining or token in self.request.eos:
                return count
        return len(drafted) + 1

    def in_scope(self, drafted: Sequence[int]) -> list[bool]:
        """Whether the rule applies at each position after the first k drafted tokens."""
        done, reasoning = len(self.ids) - len(self.request.prompt), self.reasoning
        scope = []
        for count in range(len(drafted) + 1):
            inside = reasoning or self.request.markers is None
            scope.append(inside and done + count >= self.request.exact_first)
            reasoning = self._reasons_after(drafted[count : count + 1], reasoning)
        return scope

    def _reasons_after(self, tokens: Sequence[int], reasoning: bool) -> bool:
        """Whether the text is within reasoning markers after `tokens`."""
        if self.request.markers is not None:
            for token in tokens:
                if token in self.request.markers:
                    reasoning = token == self.request.markers[0]
        return reasoning

    def extend(self, tokens: Sequence[int]) -> int:
        """Appends tokens up to the first that ends the text; returns how many."""
        for count, token in enumerate(tokens, 1):
            self.ids.append(token)
            self.reasoning = self._reasons_after([token], self.reasoning)
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
