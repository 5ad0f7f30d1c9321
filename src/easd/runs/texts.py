"""Text of tokens, and text fit to be shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    r"\ufeff\ufff9-\ufffb]"
)
_NAMED = ("token", "draft_top_tokens", "target_top_tokens")


class TokenTexts:
    """Texts of tokens, each decoded once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._known: dict[int, str] = {}

    def of(self, columns: Mapping[str, np.ndarray]) -> dict[int, str]:
        """Texts of every token that rows of the tokens table name."""
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


def visible(text: str) -> str:
    """The text with control, bidirectional and zero-width characters spelt out."""
    return _UNSEEN.sub(lambda match: f"<U+{ord(match[0]):04X}>", text)


def shortened(value: Any) -> str:
    """A value as an error names it: in one line, no control characters, not at length."""
    text = visible(value if isinstance(value, str) else repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
