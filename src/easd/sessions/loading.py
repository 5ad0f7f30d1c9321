"""Load models behind a status line."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from easd.config import RunConfig
from easd.engine.models import Pair
from easd.loading import load
from easd.trace.visible import visible


def load_with_status(config: RunConfig, console: Console) -> Pair:
    """Loads a config's pair and says what takes long.

    Raises:
        EasdError: The device cannot be used, or a model cannot be loaded.
    """
    with console.status("loading") as status:
        return load(config, lambda line: status.update(escape(visible(line))))
