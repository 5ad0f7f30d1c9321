"""Give memory that nothing uses back to the system."""

from __future__ import annotations

import ctypes
import ctypes.util
from functools import cache


def give_back_memory() -> None:
    """Returns the holes between live allocations, where the C library can.

    Decoding takes and frees tables of changing size; glibc keeps the holes, and a process that
    decodes for an hour grows by gigabytes.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> ctypes._NamedFuncPointer | None:
    name = ctypes.util.find_library("c")
    return getattr(ctypes.CDLL(name), "malloc_trim", None) if name else None
