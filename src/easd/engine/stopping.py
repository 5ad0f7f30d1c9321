"""Stop strings, exact to the token that completes one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from easd.errors import ConfigError

# Tokens that decode to nothing, such as halves of a character, may stand among the last ones.
_SLACK = 8


class StopStrings:
    """A criterion that is met by the first token after which the new text contains a stop string.

    Only decoded tokens count, not the prompt. transformers' own `StopStringCriteria` works from
    the vocabulary's spelling and fails on word-level tokenizers; this one decodes the last tokens.

    Args:
        tokenizer: turns ids into text.
        strings: the stop strings.
        prompt_length: how many ids in front of the text are not decoded tokens.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str], prompt_length: int
    ) -> None:
        if "" in strings:
            raise ConfigError("a stop string is empty and would end every text; remove it")
        self.tokenizer = tokenizer
        self.strings = strings
        self.prompt_length = prompt_length
        # A token is at least one byte of text.
        self._window = max(len(string.encode()) for string in strings) + _SLACK

    def __call__(self, text: Tensor, scores: None) -> bool:
        new = text[0, self.prompt_length :].tolist()
        ending = self.tokenizer.decode(new[-self._window :])
        return any(string in ending for string in self.strings)
