"""The attention of a model while slots run it, seen by no other thread.

transformers reads the kind of attention from the model's config, which all threads share. The first
forward that begins changes it and the last that ends restores it; whatever a thread runs on the
model outside such a forward is told apart by `borrows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, local

from transformers import PreTrainedConfig

_lock = Lock()
_this_thread = local()
# By the identity of a config: how many forwards run with it, and what its attention was before.
_running: dict[int, tuple[int, str | None]] = {}


@contextmanager
def borrowed(config: PreTrainedConfig, attention: str) -> Iterator[None]:
    """Runs forwards of the models of `config` with this attention."""
    key, outer = id(config), borrows()
    with _lock:
        count, before = _running.get(key, (0, config._attn_implementation))
        _running[key] = count + 1, before
        config._attn_implementation_internal = attention
    _this_thread.borrows = True
    try:
        yield
    finally:
        _this_thread.borrows = outer
        with _lock:
            count, before = _running.pop(key)
            if count > 1:
                _running[key] = count - 1, before
            else:
                config._attn_implementation_internal = before


def borrows() -> bool:
    """Whether this thread runs a forward within `borrowed`."""
    return getattr(_this_thread, "borrows", False)
