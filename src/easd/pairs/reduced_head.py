"""A language-model head over the most frequent tokens only (FR-Spec, arXiv:2502.14856)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ReducedHead(nn.Module):
    """Linear head over R of V tokens that answers with full-vocabulary logits.

    Tokens outside the subset get a logit of -inf, hence probability 0: a draft with this head can
    be handed to any caller that expects `config.vocab_size` logits, and stays lossless, since a
    draft may leave out any token. The product costs R / V of the full head's.

    Attributes:
        token_ids: their token ids, `[R]`.
        vocab_size: V.
    """

    token_ids: Tensor

    def __init__(self, weight: Tensor, token_ids: Tensor, vocab_size: int) -> None:
        super().__init__()
        if weight.shape[:1] != token_ids.shape:
            raise ValueError(f"{len(weight)} head rows but {len(token_ids)} token ids")
        # A plain linear layer inside, so that whatever speeds those up finds it.
        self.kept = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.kept.weight = nn.Parameter(weight, requires_grad=weight.requires_grad)
        self.register_buffer("token_ids", token_ids.long())
        self.vocab_size = vocab_size

    @classmethod
    def from_full(cls, weight: Tensor, token_ids: Tensor) -> ReducedHead:
        """Keep the rows `token_ids` of a full head `[V, hidden]`, frozen."""
        return cls(weight.detach()[token_ids.long()], token_ids, len(weight))

    @property
    def weight(self) -> Tensor:
        """Rows of the full head that are kept, `[R, hidden]`."""
        return self.kept.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits `[..., V]` of hidden states `[..., hidden]`."""
        kept = self.kept(hidden)
        logits = kept.new_full((*kept.shape[:-1], self.vocab_size), -torch.inf)
        return logits.index_copy_(-1, self.token_ids, kept)
