"""Incremental detokenization: releases text as soon as it can no longer change."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from easd.engine.request import FinishReason

_PART = "\ufffd"  # An incomplete character decodes to this.
# A character has at most four bytes, with tokens that decode to nothing among theirs.
_LONGEST_PART = 8


class Detokenizer:
    """The text of a growing list of tokens.

    Text that a later token could change is held back: incomplete characters and possible beginnings
    of a stop string. A stop string and what follows it are never released.

    Attributes:
        text: all decoded text, up to a stop string.
        finished: why the text ended.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.text = ""
        self.finished: FinishReason | None = None
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        # Length of the text before and after each token.
        self._starts: list[int] = []
        self._ends: list[int] = []
        # Tokens before `_decoded` are in the text. Those from `_context` on are decoded again with
        # what follows, because a token's text may depend on the one before.
        self._context = self._decoded = 0
        self._before = ""
        self._released = 0

    def add(self, tokens: Sequence[int], finished: FinishReason | None) -> str:
        """Adds tokens; returns the text that can no longer change."""
        self.finished = finished
        for token in tokens[:-1] if finished == "eos" else tokens:
            self._ids.append(token)
            self._starts.append(len(self.text))
            self._extend(whole=False)
        if finished:
            self._extend(whole=True)
        if finished == "stop":
            found = [self.text.find(string) for string in self._stop]
            self.text = self.text[: min((at for at in found if at >= 0), default=None)]
        certain = len(self.text) - (0 if finished else self._beginning_of_stop())
        piece = self.text[self._released : certain]
        self._released = max(self._released, certain)
        return piece

    @property
    def num_released(self) -> int:
        """The number of tokens whose whole text has been released."""
        return bisect_right(self._ends, self._released)

    def offset(self, token: int) -> int:
        """The offset of a token in the text."""
        return self._starts[token]

    def _extend(self, *, whole: bool) -> None:
        window = self._decode(self._context)
        partial = window.endswith(_PART) and len(self._ids) - self._decoded < _LONGEST_PART
        grows = len(window) > len(self._before)
        if not whole and (partial or not grows):
            return
        if grows:
            self.text += window[len(self._before) :]
            self._context, self._decoded = self._decoded, len(self._ids)
            self._before = self._decode(self._context)
        self._ends += [len(self.text)] * (len(self._ids) - len(self._ends))

    def _decode(self, first: int) -> str:
        return str(self._tokenizer.decode(self._ids[first:], skip_special_tokens=True))

    def _beginning_of_stop(self) -> int:
        """The length of the longest suffix that may be the beginning of a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self.text)), 0, -1):
            if any(string.startswith(self.text[-length:]) for string in self._stop):
                return length
        return 0
