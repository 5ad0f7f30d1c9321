"""Replaces a model's attention during a forward of slots, without affecting other threads.

transformers reads the kind of attention from the model's config, which all threads share. The first
such forward to begin changes it, and the last to end restores it. `borrows` tells them from other
forwards of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, local

from transformers import PreTrainedConfig

_lock = Lock()
_this_thread = local()
# By a config's id: the number of running forwards, and its attention before them.
_running: dict[int, tuple[int, str | None]] = {}


@contextmanager
def borrowed(config: PreTrainedConfig, attention: str) -> Iterator[None]:
    """Context in which this thread's forwards of the models of `config` use `attention`."""
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
