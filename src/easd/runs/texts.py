"""Texts of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_NAMED = ("token", "draft_top_tokens", "target_top_tokens", "law_top_tokens")


class TokenTexts:
    """Decodes tokens, each once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._known: dict[int, str] = {}

    def of(self, columns: Mapping[str, np.ndarray]) -> dict[int, str]:
        """Texts of all tokens in rows of the tokens table."""
        return self.texts(np.unique(np.concatenate([columns[n].ravel() for n in _NAMED])).tolist())

    def texts(self, tokens: Iterable[int]) -> dict[int, str]:
        """Texts of these tokens."""
        found = {}
        for token in tokens:
            if token not in self._known:
                self._known[token] = self._text_of(token)
            found[token] = self._known[token]
        return found

    def _text_of(self, token: int) -> str:
        """The token as it continues a text, with the space some tokenizers put before it."""
        before, both, alone = (
            self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            for ids in (self._anchor, [*self._anchor, token], [token])
        )
        return both.removeprefix(before) if both.startswith(before) else alone
