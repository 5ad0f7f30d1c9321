"""A draft's distributions along a text, for a draft whose tokenizer is not the target's.

The draft reads the whole text once. Where its tokens of the text up to a position are the first of
its tokens of the whole text, that pass has the distribution for the position. Elsewhere, as inside
a word that is one token of the draft and several of the target, the position gets its own pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from easd.diagnose.positions import DraftVocabulary
from easd.engine.models.slots import LONGEST_PIECE, SlotModel, context_window
from easd.engine.other_vocabulary import Reading, common_length
from easd.engine.pair import Pair
from easd.engine.request import Row
from easd.engine.vocabulary import Begun, vocabulary_map


@dataclass(frozen=True, slots=True)
class _Part:
    """A text in the draft's tokens, and the target's tokens of a number that it may end inside."""

    ids: list[int]
    begun: Begun | None

    @property
    def needed(self) -> int:
        """The length of the shortest text that a distribution is needed after."""
        return len(self.ids) - (self.begun is not None)


class OtherVocabularyPass:
    """Reads the rows of a batch side by side and counts positions as `DraftVocabulary` has them."""

    def __init__(self, pair: Pair, num_rows: int) -> None:
        assert pair.draft is not None, "checked by the caller"
        assert pair.draft_tokenizer is not None, "checked by the caller"
        self._model = SlotModel(pair.draft, num_rows)
        self._words = vocabulary_map(pair.tokenizer, pair.draft_tokenizer)
        self._size = pair.vocab_size
        self._window = context_window(pair.draft)
        self._dtype = torch.promote_types(pair.draft.dtype, torch.float32)
        self._readings: list[Reading] = []
        self._held: list[list[int]] = []
        self.aligned = self.anew = self.silent = 0

    def summary(self) -> DraftVocabulary:
        """Shares of the vocabulary, and counts of the positions so far."""
        return DraftVocabulary(
            coverage=self._words.coverage,
            one_to_one=self._words.one_to_one,
            aligned=self.aligned,
            anew=self.anew,
            silent=self.silent,
        )

    def start(self, rows: Sequence[Row]) -> None:
        """Starts a new batch of texts."""
        self._readings = [Reading.start(self._words, row) for row in rows]
        self._held = [[] for _ in rows]

    def logits(
        self, rows: Sequence[Row], right: Tensor, counts: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Logarithms of the draft's distributions at each row's next positions.

        Args:
            rows: the texts so far.
            right: the tokens that follow, int64 [B, T], padded.
            counts: number of following tokens in each row.

        Returns:
            Log-probabilities of the target's tokens, [B, T, V], and where there are any, bool
            [B, T].
        """
        shape, device = (*right.shape, self._size), right.device
        found = torch.zeros(shape, dtype=self._dtype, device=device)
        heard = torch.zeros(right.shape, dtype=torch.bool, device=device)
        for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
            reading = self._readings[place]
            reading.read(row.ids[reading.length :])
            parts = self._parts(reading.fork(), right[place, :count].tolist())
            if parts:
                at, opinions = list(parts), self._opinions(place, list(parts.values()))
                heard[place, at] = opinions.sum(-1) != 0  # NaN passes, and is an error later
                found[place, at] = opinions.log()
        found[~heard] = 0
        self.silent += sum(counts) - int(heard.sum())
        return found, heard

    def _parts(self, reading: Reading, tokens: Sequence[int]) -> dict[int, _Part]:
        """The draft's ids of the text before each of `tokens`, by place, where it has any."""
        parts = {}
        for place, token in enumerate(tokens):
            ids = reading.ids or []
            if ids and (self._window is None or len(ids) <= self._window):
                parts[place] = _Part(ids, reading.begun(ids))
            reading.read([token])
        return parts

    def _opinions(self, row: int, parts: Sequence[_Part]) -> Tensor:
        """The draft's distribution after each part, [parts, V of the target]."""
        whole, found = parts[-1].ids, {}
        aligned = [at for at, part in enumerate(parts) if whole[: len(part.ids)] == part.ids]
        for at in set(range(len(parts))) - set(aligned):
            (found[at],) = self._along(row, parts[at].ids, [parts[at]])
        along = self._along(row, whole, [parts[at] for at in aligned])
        found |= dict(zip(aligned, along, strict=True))
        self.aligned += len(aligned)
        self.anew += len(parts) - len(aligned)
        return torch.stack([found[at] for at in range(len(parts))])

    def _along(self, row: int, ids: list[int], parts: Sequence[_Part]) -> list[Tensor]:
        """Reads `ids`; returns the draft's opinion [V of the target] after each part of them."""
        shortest = min(part.needed for part in parts)
        probs = self._forward(row, ids, len(ids) - shortest + 1)
        pushed = self._words.pushforward(probs, self._size)
        found = []
        for part in parts:
            at = len(part.ids) - shortest
            if part.begun is None:
                found.append(pushed[at])
            else:
                last = part.ids[-1]
                found.append(self._words.inside_number(pushed[at], probs[at - 1], last, part.begun))
        return found

    def _forward(self, row: int, ids: list[int], keep: int) -> Tensor:
        """Distributions after the last `keep` of `ids`, which the row's slots then hold."""
        begin = min(common_length(self._held[row], ids), len(ids) - keep)
        self._model.lengths[row] = begin
        while len(ids) - begin > keep:
            piece = ids[begin : min(begin + LONGEST_PIECE, len(ids) - keep)]
            self._model.extend(row, [piece])
            begin += len(piece)
        fed = torch.tensor([ids[begin:]], device=self._model.device)
        logits = self._model.forward(fed, row, keep)[0]
        self._model.lengths[row] = len(ids)
        self._held[row] = ids
        return logits.to(self._dtype).softmax(-1)
