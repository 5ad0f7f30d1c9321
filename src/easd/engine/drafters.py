"""Drafters: a draft model, prompt lookup, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from easd.core.noise import Noise
from easd.engine.models import graphs
from easd.engine.models.graphs import Graphs
from easd.engine.models.slots import LONGEST_PIECE, SlotModel
from easd.engine.models.upload import upload
from easd.engine.opinions import Opinion, Opinions
from easd.engine.origins import Origin
from easd.engine.request import Row

MOST_AT_ONCE = 16  # tokens of ragged rows whose logits are computed together


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Draft tokens, the draft's distributions, and those that the tokens were drawn from.

    Attributes:
        tokens: int64 [B, K], padded.
        counts: number of tokens of each row.
        probs: [B, K+1, V]; the last position is all zeros unless the draft was evaluated at the
            bonus position.
        raw: the same at temperature 1 without truncation, if asked for.
        proposals: the distributions that the tokens were drawn from, [B, K+1, V]; None if `probs`.
        origins: what the opinions of a draft with another vocabulary were computed from, by row and
            position; None where it had none.
    """

    tokens: Tensor
    counts: list[int]
    probs: Tensor
    raw: Tensor | None
    proposals: Tensor | None = None
    origins: list[list[Origin | None]] | None = None


class Drafter(Protocol):
    """Proposes tokens for the rows of a batch."""

    @property
    def models(self) -> Sequence[SlotModel]:
        """The models whose slots follow the rows of the batch."""
        ...

    def prompt(self, row: Row) -> list[int]:
        """The tokens of a new row's prompt that its models cache before the row decodes."""
        ...

    def propose(
        self, rows: Sequence[Row], counts: list[int], noise: Noise, *, bonus: bool, raw: bool
    ) -> Draft:
        """Drafts at most `counts[i]` tokens for row i; `bonus` evaluates one more position."""
        ...

    def commit(self, lengths: list[int]) -> None:
        """Truncates each row's cache to `lengths`, dropping rejected tokens."""
        ...


class ModelDrafter:
    """Drafts with a smaller language model.

    A row's block ends early once the draft's probability of all its tokens falls below
    `least_block_prob`. Whether a position is drafted then depends only on the tokens before it, so
    every token keeps its law. The expected -log of that probability is the sum of the draft's
    entropies, which predict refusals (compare arXiv:2410.18351, which stops before a token is drawn
    and so wastes a forward).
    """

    def __init__(self, model: SlotModel, vocab_size: int, least_block_prob: float = 0.0) -> None:
        self.model = model
        self.vocab_size = vocab_size
        self.least_block_prob = least_block_prob
        # A reduced head (`easd.pairs.smollm2.ReducedHead`) lists its tokens.
        known = getattr(model.model.get_output_embeddings(), "token_ids", None)
        self._known = None if known is None else known[known < vocab_size]
        self._graphs = Graphs()

    @property
    def models(self) -> Sequence[SlotModel]:
        return (self.model,)

    def prompt(self, row: Row) -> list[int]:
        return row.ids[:-1]

    def propose(
        self, rows: Sequence[Row], counts: list[int], noise: Noise, *, bonus: bool, raw: bool
    ) -> Draft:
        counts = list(counts)
        device = self.model.device
        drafted = torch.zeros(len(rows), 0, dtype=torch.long, device=device)
        blank = torch.zeros(len(rows), 1, self.vocab_size, dtype=self._dtype, device=device)
        block_prob = torch.ones(len(rows), device=device, dtype=self._dtype)
        asking = Opinions(rows, self._known, raw=raw, confident=self.least_block_prob > 0)
        draws = max(counts) > 0 and not asking.greedy
        clocks = noise.drafts(max(counts), self.vocab_size) if draws else None
        opinions: list[Opinion] = []
        while len(opinions) < max(counts) + bonus:
            position = len(opinions)
            needed = [position < count + bonus for count in counts]
            logits, no_opinion = self._next(rows, drafted, needed)
            for row in no_opinion:
                counts[row] = min(counts[row], position)
            drafts = position < max(counts)
            if asking.kind is not None and graphs.serve(device):
                place = torch.full((len(rows),), position, device=device) if drafts else None
                ask = partial(asking.at, drafted, counts)
                opinion = self._graphs.run(asking.kind, ask, logits, noise, place)
            else:
                given = drafted, counts, logits, noise
                if not drafts:
                    opinion = asking.at(*given)
                else:
                    here = None if clocks is None else clocks[:, position]
                    opinion = asking.at(*given, position, here)
            opinions.append(opinion)
            if opinion.token is not None:
                token = _padded(opinion.token, rows, [position < count for count in counts])
                drafted = torch.cat([drafted, token[:, None]], 1)
                if opinion.confidence is not None:
                    block_prob *= opinion.confidence
                    for row, prob in enumerate(block_prob.tolist()):
                        if prob < self.least_block_prob:
                            counts[row] = min(counts[row], position + 1)
            for each in (opinion.probs, opinion.raw, opinion.proposal) if no_opinion else ():
                if each is not None:
                    each[no_opinion] = 0
        positions = drafted.shape[1] + 1  # One fewer than asked for, if no row had an opinion.
        bonuses = [] if bonus else [blank]

        def joined(given: list[Tensor | None], last: list[Tensor]) -> Tensor:
            found = [each for each in given if each is not None]
            return torch.cat([*found, *last], 1)[:, :positions]

        drawn_from = [opinion.proposal for opinion in opinions]
        tempered = any(each is not None for each in drawn_from)
        return Draft(
            tokens=drafted,
            counts=counts,
            probs=joined([opinion.probs for opinion in opinions], bonuses),
            raw=joined([opinion.raw for opinion in opinions], bonuses) if raw else None,
            proposals=joined(drawn_from, [blank]) if tempered else None,
        )

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.model.model.dtype, torch.float32)

    def commit(self, lengths: list[int]) -> None:
        for row, length in enumerate(lengths):
            self.model.lengths[row] = min(self.model.lengths[row], length)

    def _next(
        self, rows: Sequence[Row], drafted: Tensor, needed: list[bool]
    ) -> tuple[Tensor, list[int]]:
        """Logits [B, 1, V] after `drafted` [B, k], and the rows where the draft has no opinion.

        Only the rows `needed` use their logits.
        """
        if drafted.shape[1] == 0:
            return self._catch_up(rows), []
        return self._forward(drafted[:, -1:], [1] * len(rows)), []

    def _catch_up(self, rows: Sequence[Row]) -> Tensor:
        """Feeds each row the tokens that its cache lacks; returns the next logits [B, 1, V]."""
        missing = [row.ids[self.model.lengths[place] :] for place, row in enumerate(rows)]
        if max(map(len, missing)) > MOST_AT_ONCE:
            missing = self._read(missing)
        counts = [len(tokens) for tokens in missing]
        longest = max(counts)
        padded = [tokens + tokens[-1:] * (longest - len(tokens)) for tokens in missing]
        return self._forward(upload(padded, self.model.device), counts)

    def _read(self, missing: list[list[int]]) -> list[list[int]]:
        """Caches all but the last of each row's tokens, and returns those."""
        for begin in range(0, max(map(len, missing)) - 1, LONGEST_PIECE):
            self.model.extend(0, [tokens[:-1][begin : begin + LONGEST_PIECE] for tokens in missing])
        return [tokens[-1:] for tokens in missing]

    def _forward(self, tokens: Tensor, counts: list[int]) -> Tensor:
        uniform = len(set(counts)) == 1
        logits = self.model.forward(tokens, keep=1 if uniform else tokens.shape[1])
        for row, count in enumerate(counts):
            self.model.lengths[row] += count
        if not uniform:
            last = upload(counts, logits.device) - 1
            logits = logits.gather(1, last[:, None, None].expand(-1, 1, logits.shape[-1]))
        return logits[..., : self.vocab_size]


def _padded(token: Tensor, rows: Sequence[Row], drafts: list[bool]) -> Tensor:
    """`token` [B] where a row still drafts, else its text's last token as padding."""
    if all(drafts):
        return token
    last = upload([row.ids[-1] for row in rows], token.device)
    return torch.where(upload(drafts, token.device), token, last)


class NoDrafter:
    """Proposes nothing: every step is one token of the target."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.device = device

    @property
    def models(self) -> Sequence[SlotModel]:
        return ()

    def prompt(self, row: Row) -> list[int]:
        return []

    def commit(self, lengths: list[int]) -> None:
        """Does nothing, since there is no cache."""

    def propose(
        self, rows: Sequence[Row], counts: list[int], noise: Noise, *, bonus: bool, raw: bool
    ) -> Draft:
        return self._certain([[] for _ in rows], rows, raw=raw)

    def _certain(self, proposals: list[list[int]], rows: Sequence[Row], *, raw: bool) -> Draft:
        """A draft of these tokens, each with probability 1."""
        length = max(map(len, proposals))
        padded = [
            known + row.ids[-1:] * (length - len(known))
            for known, row in zip(proposals, rows, strict=True)
        ]
        tokens = upload(padded, self.device, torch.long)
        probs = torch.zeros(len(proposals), length + 1, self.vocab_size, device=self.device)
        for row, known in enumerate(proposals):
            if known:
                probs[row, range(len(known)), known] = 1
        return Draft(
            tokens=tokens,
            counts=[len(known) for known in proposals],
            probs=probs,
            raw=probs if raw else None,
        )


class PromptLookupDrafter(NoDrafter):
    """Proposes what followed an earlier occurrence of the text's last tokens, with certainty."""

    def __init__(self, vocab_size: int, device: torch.device, gamma: int) -> None:
        super().__init__(vocab_size, device)
        self.gamma = gamma

    def propose(
        self, rows: Sequence[Row], counts: list[int], noise: Noise, *, bonus: bool, raw: bool
    ) -> Draft:
        found = [self._look_up(row.ids)[:count] for row, count in zip(rows, counts, strict=True)]
        return self._certain(found, rows, raw=raw)

    def _look_up(self, ids: list[int]) -> list[int]:
        generator = PromptLookupCandidateGenerator(
            num_output_tokens=self.gamma, max_length=len(ids) + self.gamma + 2
        )
        candidate, _ = generator.get_candidates(torch.tensor([ids]))  # type: ignore[arg-type]
        return candidate[0, len(ids) :].tolist()
