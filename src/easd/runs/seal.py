"""Seals, which show that a file is unchanged and was written for its place.

A part's seal is a hash over its run, table, name and every other byte. It is in the gap that
Parquet allows between pages and footer, so any reader opens the file. The seal of run.json is one
of its entries. A seal guards against accidents, not against forgery.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

_SIZE = 16
_MAGIC = b"PAR1"
_ENDING = len(_MAGIC) + 4  # the footer's length, and the magic


def seal_part(parquet: bytes, place: str) -> bytes:
    """A Parquet file with its seal before the footer; `place` is its run, table and name."""
    footer = int.from_bytes(parquet[-_ENDING : -len(_MAGIC)], "little")
    pages, tail = parquet[: -_ENDING - footer], parquet[-_ENDING - footer :]
    return pages + _hash(place, pages, tail) + tail


def is_intact(parquet: bytes, place: str) -> bool:
    """Whether a file is what `seal_part` made for this place."""
    if len(parquet) < len(_MAGIC) + _SIZE + _ENDING or parquet[-len(_MAGIC) :] != _MAGIC:
        return False
    footer = int.from_bytes(parquet[-_ENDING : -len(_MAGIC)], "little")
    start = len(parquet) - _ENDING - footer
    if start < len(_MAGIC) + _SIZE:
        return False
    pages, seal, tail = parquet[: start - _SIZE], parquet[start - _SIZE : start], parquet[start:]
    return seal == _hash(place, pages, tail)


def seal_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with their seal."""
    rest = {name: value for name, value in values.items() if name != "seal"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, "seal": _hash("run.json", text.encode()).hex()}


def is_sealed(values: Mapping[str, Any]) -> bool:
    """Whether the values are unchanged since they were sealed."""
    try:
        return values.get("seal") == seal_json(values)["seal"]
    except RecursionError:  # changed to be nested more deeply than JSON can be written
        return False


def _hash(place: str, *parts: bytes) -> bytes:
    digest = blake2b(digest_size=_SIZE)
    for part in (place.encode(), *parts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
