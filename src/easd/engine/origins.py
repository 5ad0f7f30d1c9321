"""Which of a draft's own tokens gave a token of the target its probability, for traces."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from easd.engine.vocabulary import Begun, VocabularyMap

# Origins of one token that are kept; others have little of its mass.
_MOST = 3
_LEAST_SHARE = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a draft's opinion at one position was computed from.

    Attributes:
        words: the map between the vocabularies.
        probs: the draft's distribution after the text, and before its last token if the text ends
            inside a number; the last row is the former, [1 or 2, V of its model].
        last: the draft's last token.
        begun: the target's tokens of that, if longer numbers begin with them.
    """

    words: VocabularyMap
    probs: Tensor
    last: int
    begun: Begun | None

    def of(self, token: int) -> list[tuple[str, float]]:
        """The draft's tokens that the target's `token` stands for, with their shares of its mass.

        They are texts, at most three, the largest share first.
        """
        ids = self.words.drafts_of(token).to(self.probs.device)
        ids = ids[ids < self.probs.shape[-1]]
        mass = self.probs[-1, ids]
        if self.begun is not None:
            before = self.probs[-2]
            longer, following = (each.to(before.device) for each in self.words.inside[self.begun])
            longer = longer[(following == token) & (longer < len(before))]
            ids = torch.cat([ids, longer])
            mass = torch.cat([mass * before[self.last], before[longer]])
        most = mass.topk(min(_MOST, len(mass)))
        total = mass.sum()
        return [
            (self.words.draft.text_of(draft_token), share)
            for draft_token, share in zip(
                ids[most.indices].tolist(), (most.values / total).tolist(), strict=True
            )
            if share >= _LEAST_SHARE
        ]
