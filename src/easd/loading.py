"""The models that a config names."""

from __future__ import annotations

from typing import Any

import torch

from easd.config import RunConfig
from easd.engine.models import Pair, load_models, load_pair
from easd.errors import ConfigError
from easd.pairs.packaged import Report, silent


def load(config: RunConfig, report: Report = silent) -> Pair:
    """Loads a config's pair.

    Raises:
        EasdError: The device cannot be used, or a model cannot be loaded.
    """
    options: dict[str, Any] = {
        "dtype": None if config.dtype is None else getattr(torch, config.dtype),
        "device": _checked_device(config.device),
        "report": report,
    }
    if config.pair is not None:
        return load_pair(config.pair, **options)
    assert config.target is not None, "a config without a pair has a target"
    return load_models(config.target, config.draft, **options)


def _checked_device(device: str | None) -> str | None:
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"device = {device!r} cannot be used ({reason}); try cpu") from None
    return device
