"""Stop strings, exact to the token that completes one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from easd.errors import ConfigError

# Allows for tokens that decode to nothing, such as halves of a character.
_SLACK = 8


class StopStrings:
    """Stops at the first token after which the new text contains a stop string.

    transformers' `StopStringCriteria` matches the vocabulary's spelling and fails on word-level
    tokenizers; this class decodes the last tokens instead. The first `prompt_length` ids do not
    count.
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
