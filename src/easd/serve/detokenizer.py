"""Incremental detokenization: releases text as soon as it can no longer change."""

from __future__ import annotations

import codecs
import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from easd.engine.request import FinishReason

_INVALID = "\ufffd"  # What invalid bytes decode to; a model may also write it.
_MOST_BYTES = 4  # Of a character in UTF-8.
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


class Detokenizer:
    """Decodes a growing list of tokens.

    Holds back text that a later token could change: incomplete characters and possible beginnings
    of a stop string. Never releases a stop string or what follows it.

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
        self._known: dict[int, bytes | None] = {}
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
        """Number of tokens whose text has been released completely."""
        return bisect_right(self._ends, self._released)

    def offset(self, token: int) -> int:
        """Returns the offset of a token in the text."""
        return self._starts[token]

    def _extend(self, *, whole: bool) -> None:
        """Decodes new tokens up to the last complete character, or with `whole` all of them."""
        end = len(self._ids) if whole else len(self._ids) - self._num_partial()
        if end <= self._decoded:
            return
        window = self._decode(self._context, end)
        if len(window) > len(self._before):
            self.text += window[len(self._before) :]
            self._context, self._decoded = self._decoded, end
            self._before = self._decode(self._context, end)
        elif not whole:
            return
        self._ends += [len(self.text)] * (end - len(self._ends))

    def _decode(self, first: int, end: int) -> str:
        return str(self._tokenizer.decode(self._ids[first:end], skip_special_tokens=True))

    def _num_partial(self) -> int:
        """Returns how many tokens at the end belong to an incomplete character.

        It reads their bytes, because a model may write U+FFFD itself.
        """
        tail, places = b"", []
        for place in range(len(self._ids) - 1, self._decoded - 1, -1):
            token = self._ids[place]
            if token not in self._known:
                self._known[token] = self._bytes_of(token)
            piece = self._known[token]
            if piece is None or len(tail) >= _MOST_BYTES:
                break
            tail = piece + tail
            places += [place] * len(piece)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(tail)
        pending = len(decoder.getstate()[0])
        return len(self._ids) - places[pending - 1] if pending else 0

    def _bytes_of(self, token: int) -> bytes | None:
        """Returns the bytes of a token that is not valid text by itself, else None."""
        text = str(self._tokenizer.decode([token], skip_special_tokens=True))
        if not text:
            return b""
        if _INVALID not in text:
            return None
        name: Any = self._tokenizer.convert_ids_to_tokens(token)
        if isinstance(name, bytes):
            return name
        if match := _BYTE_TOKEN.fullmatch(name):
            return bytes([int(match[1], 16)])
        if all(character in _BYTES for character in name):
            return bytes(_BYTES[character] for character in name)
        return None

    def _beginning_of_stop(self) -> int:
        """Returns the length of the longest suffix that may begin a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self.text)), 0, -1):
            if any(string.startswith(self.text[-length:]) for string in self._stop):
                return length
        return 0
