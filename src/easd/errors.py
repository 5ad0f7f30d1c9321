"""Errors that a user can fix, and escaping of untrusted text in messages.

Each message names the value, the limit and the way out.
"""

from __future__ import annotations

import re
from reprlib import Repr
from typing import Any


class EasdError(Exception):
    """Base of every error caused by input rather than by a defect of this library."""


class RuleError(EasdError, ValueError):
    """An unknown rule, an unknown field, or a field outside its range."""


class ConfigError(EasdError, ValueError):
    """A setting of a run that is invalid or does not fit."""


class ModelError(EasdError):
    """Model files that are missing, corrupt, mismatched, or not supported."""


class InputError(EasdError, ValueError):
    """A prompt that cannot be decoded: empty, or longer than the context window."""


class NumericsError(EasdError, ArithmeticError):
    """A model returned NaN, or a row of logits that leaves no token to choose."""


class TraceError(EasdError):
    """A trace folder that cannot be written or read."""


class EndpointError(EasdError):
    """A server that cannot be reached, refuses a request, or gives an invalid answer."""


def shown(value: Any) -> str:
    """A value quoted for messages: one short line with control characters escaped."""
    return _SHORT.repr(value)


def visible(text: str) -> str:
    """The text with control, bidirectional and zero-width characters spelt out."""
    return _UNSEEN.sub(lambda match: f"<U+{ord(match[0]):04X}>", text)


def one_line(message: str) -> str:
    """A message in one line of bounded length, with invisible characters spelt out."""
    text = " ".join(message.split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return visible(text)


class _Short(Repr):
    """Supports integers with more digits than Python converts to text."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 60
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 3, 4, 4, 4

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() <= 128:
            return repr(x)
        return f"{'-' if x < 0 else ''}10^{round((x.bit_length() - 1) * 0.30103)}"


_SHORT = _Short()
_LONGEST = 1000
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    r"\ufeff\ufff9-\ufffb]"
)
