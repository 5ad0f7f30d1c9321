"""A vLLM plugin for EASD and related rules, inactive until `additional_config` has an "easd" key.

vLLM calls `register` in each of its processes before it builds an engine. This changes only
`EngineArgs.create_engine_config`, which then checks a configuration with `{"easd": {...}}` and has
its workers load `worker.Extension`, which changes the sampler of that engine alone.
"""

from __future__ import annotations

from typing import Any

KEY = "easd"
EXTENSION = "easd.integrations.vllm.worker.Extension"


def register() -> None:
    """Entry point of the group `vllm.general_plugins`; may be called any number of times."""
    from vllm.engine.arg_utils import EngineArgs  # pyright: ignore

    stock = EngineArgs.create_engine_config
    if getattr(stock, "asks_easd", False):
        return

    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = stock(self, *args, **kwargs)
        if is_configured(config):
            from easd.integrations.vllm.endpoint import count_in_metrics
            from easd.integrations.vllm.start import prepare

            prepare(config)
            count_in_metrics()
        return config

    create_engine_config.asks_easd = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_engine_config


def is_configured(config: Any) -> bool:
    """Returns whether a `VllmConfig` has settings for this plugin."""
    values = config.additional_config
    return isinstance(values, dict) and KEY in values
