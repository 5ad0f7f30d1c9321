"""Text of models and files, fit to be shown."""

from __future__ import annotations

import re

_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
)


def visible(text: str) -> str:
    """The text with control, bidirectional and zero-width characters spelt out."""
    return _UNSEEN.sub(lambda match: f"<U+{ord(match[0]):04X}>", text)
