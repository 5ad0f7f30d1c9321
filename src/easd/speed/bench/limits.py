"""Checks before decoding that texts fit in the context window and in memory."""

from __future__ import annotations

import os
from contextlib import suppress

import torch

from easd.engine.models.cache import SlotCache
from easd.engine.models.packing import packs_dtype
from easd.engine.pair import Pair
from easd.errors import ConfigError, ModelError
from easd.speed.plan import Shape

_FLOAT32 = 4


def check_window(pair: Pair, prompt: int, tokens: int) -> None:
    """Refuses texts of `prompt` + `tokens` tokens that are longer than the context window.

    Raises:
        ConfigError: They do not fit.
    """
    window = pair.context_window
    if window is not None and prompt + tokens > window:
        raise ConfigError(
            f"prompts of {prompt} tokens and {tokens} new ones are more than {pair.name}'s context "
            f"window of {window}; lower the context or the tokens"
        )


def check_memory(pair: Pair, batch: int, length: int, drafted: int) -> None:
    """Refuses batches that need more memory than there is.

    Args:
        pair: the loaded models.
        batch: texts decoded at once.
        length: tokens per text.
        drafted: draft tokens per block.

    Raises:
        ConfigError: They do not fit.
    """
    device = pair.target.device
    slots = _slots(length)
    with suppress(ModelError):  # Mixtures of experts have no `Shape` and are not checked.
        shapes = [Shape.of(m, "") for m in (pair.target, pair.draft) if m is not None]
        copies = 2 if device.type == "cpu" and packs_dtype(pair.target.dtype) else 1
        weights = sum(copies * shape.weight_bytes for shape in shapes)
        cache = sum(batch * slots * shape.cached * shape.width for shape in shapes)
        # Both models' distributions of a block.
        step = 2 * batch * (drafted + 1) * shapes[0].vocab_size * _FLOAT32
        needed, there = (weights + cache + step) / 1e9, _memory(device) / 1e9
        if needed > there:
            raise ConfigError(
                f"{batch} texts of {length} tokens at once need {needed:.1f} GB ({cache / 1e9:.1f} "
                f"of them for keys and values, in {slots} slots a text) and there are {there:.1f}; "
                "decode fewer at once, or shorter texts"
            )


def _slots(length: int) -> int:
    """Returns the capacity that the engine's cache grows to for a text."""
    cache = SlotCache(num_rows=1)
    cache.place(slice(0, 1), [0], length, torch.device("cpu"))
    return cache.placement.capacity


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
