"""Drafters: a draft model, prompt lookup, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from easd.core.noise import Noise, race
from easd.engine.models.slots import LONGEST_PIECE, SlotModel
from easd.engine.origins import Origin
from easd.engine.request import Row
from easd.engine.sampling import Distributions, distributions, prefixed, proposals

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
        greedy = all(row.request.processing.greedy for row in rows)
        constrained = any(prefixed(row) for row in rows)
        some_greedy = any(row.request.processing.greedy for row in rows)
        # Greedy probabilities are one-hot; only scores show the draft's confidence.
        wants_scores = constrained or (some_greedy and self.least_block_prob > 0)
        drafted = torch.zeros(len(rows), 0, dtype=torch.long, device=device)
        blank = torch.zeros(len(rows), 1, self.vocab_size, dtype=self._dtype, device=device)
        block_prob = torch.ones(len(rows), device=device, dtype=self._dtype)
        clocks = noise.drafts(max(counts), self.vocab_size) if max(counts) and not greedy else None
        probs, raws, drawn_from = [], [], []
        position = 0
        while position < max(counts) + bonus:
            needed = [position < count + bonus for count in counts]
            logits, no_opinion = self._next(rows, drafted, needed)
            for row in no_opinion:
                counts[row] = min(counts[row], position)
            found = distributions(
                logits, rows, drafted, counts, want_raw=raw, want_scores=wants_scores
            )
            banned = _all_banned(found) if constrained else None
            probs.append(_certain_where(banned, found.probs))
            raws.append(found.raw if found.raw is None else _certain_where(banned, found.raw))
            if position < max(counts):
                among = None if constrained else self._known
                proposal = proposals(probs[-1], rows)
                drawn_from.append(proposal)
                source = probs[-1] if proposal is None else proposal
                if clocks is None:
                    token = self._sample(source[:, 0], noise, position, greedy, among)
                else:
                    token = race(source[:, 0], clocks[:, position])
                token = _padded(token, rows, [position < count for count in counts])
                drafted = torch.cat([drafted, token[:, None]], 1)
                if self.least_block_prob:
                    block_prob *= _confidence(found, token)
                    for row, prob in enumerate(block_prob.tolist()):
                        if prob < self.least_block_prob:
                            counts[row] = min(counts[row], position + 1)
            for each in (probs[-1], raws[-1], *drawn_from[position:]) if no_opinion else ():
                if each is not None:
                    each[no_opinion] = 0
            position += 1
        if not bonus:
            probs.append(blank)
            raws.append(blank)
        positions = drafted.shape[1] + 1  # One fewer than asked for, if no row had an opinion.
        return Draft(
            tokens=drafted,
            counts=counts,
            probs=torch.cat(probs, 1)[:, :positions],
            raw=torch.cat(raws, 1)[:, :positions] if raw else None,
            proposals=_joined(drawn_from, blank),
        )

    def _sample(
        self, probs: Tensor, noise: Noise, position: int, greedy: bool, among: Tensor | None
    ) -> Tensor:
        if greedy:
            return probs.argmax(-1)
        at = torch.full((probs.shape[0],), position, device=probs.device)
        return noise.drafted(probs, at, among)

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
        return self._forward(torch.tensor(padded, device=self.model.device), counts)

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
            last = torch.tensor(counts, device=logits.device) - 1
            logits = logits.gather(1, last[:, None, None].expand(-1, 1, logits.shape[-1]))
        return logits[..., : self.vocab_size]


def _joined(proposals: list[Tensor | None], blank: Tensor) -> Tensor | None:
    """The proposals of a block and a blank bonus position, [B, K+1, V]; None without any."""
    given = [proposal for proposal in proposals if proposal is not None]
    return torch.cat([*given, blank], 1) if given else None


def _padded(token: Tensor, rows: Sequence[Row], drafts: list[bool]) -> Tensor:
    """`token` [B] where a row still drafts, else its text's last token as padding."""
    if all(drafts):
        return token
    last = torch.tensor([row.ids[-1] for row in rows], device=token.device)
    return torch.where(torch.tensor(drafts, device=token.device), token, last)


def _all_banned(found: Distributions) -> Tensor:
    """Where every token that the draft knows is banned, as bool [B, T]."""
    assert found.scores is not None, "scores were asked for"
    return found.scores.amax(-1) == float("-inf")


def _confidence(found: Distributions, token: Tensor) -> Tensor:
    """The draft's probability [B] of `token` [B], before greedy decoding makes it one-hot."""
    probs = found.probs if found.scores is None else found.scores.softmax(-1)
    return probs[:, 0].gather(-1, token[:, None])[:, 0]


def _certain_where(banned: Tensor | None, probs: Tensor) -> Tensor:
    """`probs` [..., V], replaced by token 0 with probability 1 where `banned` [...].

    A processor may ban every token that a reduced head knows. Any proposal is exact there: if the
    target excludes it, it is refused and replaced.
    """
    if banned is None:
        return probs
    certain = torch.zeros_like(probs)
    certain[..., 0] = 1
    return torch.where(banned[..., None], certain, probs)


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
        tokens = torch.tensor(padded, dtype=torch.long, device=self.device)
        probs = torch.zeros(len(proposals), length + 1, self.vocab_size, device=self.device)
        for row, known in enumerate(proposals):
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
