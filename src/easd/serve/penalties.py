"""OpenAI's ways to change logits that transformers has no processor for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class OccurrencePenalty:
    """Lowers logits of tokens that were decoded already, not those of the prompt.

    Args:
        prompt_length: how many ids in front of the text are not decoded tokens.
        presence: subtracted once from every such token.
        frequency: subtracted as often as the token was decoded.
    """

    def __init__(self, prompt_length: int, *, presence: float, frequency: float) -> None:
        self._prompt_length = prompt_length
        self._presence = presence
        self._frequency = frequency

    def __call__(self, text: Tensor, scores: Tensor) -> Tensor:
        """Of texts [1, L] and scores [1, V]."""
        tokens, counts = text[0, self._prompt_length :].unique(return_counts=True)
        lowered = scores.clone()
        lowered[0, tokens] -= self._presence + self._frequency * counts
        return lowered


class LogitBias:
    """Adds a number to single tokens' logits.

    Args:
        biases: by token id.
    """

    def __init__(self, biases: Mapping[int, float]) -> None:
        self._tokens = list(biases)
        self._biases = torch.tensor(list(biases.values()))

    def __call__(self, text: Tensor, scores: Tensor) -> Tensor:
        """Of texts [1, L] and scores [1, V]."""
        raised = scores.clone()
        raised[0, self._tokens] += self._biases.to(scores)
        return raised
