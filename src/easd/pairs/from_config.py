"""Loads the models of a config."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from transformers.utils import logging as hf_logging

from easd.config import RunConfig
from easd.engine.pair import Pair
from easd.errors import ConfigError, shown, visible
from easd.pairs.loading import load_models, load_pair
from easd.pairs.packaged import Report, silent


def load(config: RunConfig, report: Report = silent) -> Pair:
    """Loads a config's pair; `report` gets a line before each long step."""
    options: dict[str, Any] = {
        "dtype": None if config.dtype is None else getattr(torch, config.dtype),
        "int8_draft": config.int8_draft,
        "device": _checked_device(config.device),
        "report": report,
    }
    if config.pair is not None:
        return load_pair(config.pair, **options)
    assert config.target is not None, "a config without a pair has a target"
    return load_models(
        config.target, config.draft, trust_remote_code=config.trust_remote_code, **options
    )


def load_with_status(config: RunConfig, console: Console) -> Pair:
    """Loads a config's pair with a status line as the only output."""
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    with console.status("loading") as status:
        return load(config, lambda line: status.update(escape(visible(line))))


def _checked_device(device: str | None) -> str | None:
    if device is None:
        return None
    if device.startswith("meta"):
        raise ConfigError(
            f"device = {shown(device)} has shapes but no weights, so it cannot decode; try cpu"
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device = {shown(device)} cannot be used ({reason}); try cpu") from None
    return device
