"""Requests are checked where they come in, so that a bad one is answered and not decoded."""

from __future__ import annotations

from typing import Any

from easd.errors import ConfigError
from easd.integrations.vllm import KEY
from easd.integrations.vllm.serving import Serving


def check_requests() -> None:
    """Has vLLM's own check of sampling parameters read `extra_args["easd"]` too.

    A request that does not fit raises an `EasdError`, a `ValueError`: status 400 over HTTP.

    Raises:
        ConfigError: This vLLM has no such check.
    """
    from vllm.v1.engine.input_processor import InputProcessor

    stock = getattr(InputProcessor, "_validate_params", None)
    if stock is None:
        raise ConfigError(
            "this vLLM has no InputProcessor._validate_params, which easd builds on; "
            "install a tested version"
        )
    if getattr(stock, "asks_easd", False):
        return

    def _validate_params(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        values = self.vllm_config.additional_config
        if isinstance(values, dict) and KEY in values:
            Serving.parse(values[KEY]).rule_for(getattr(params, "extra_args", None))
        return stock(self, params, *args, **kwargs)

    _validate_params.asks_easd = True  # type: ignore[attr-defined]
    InputProcessor._validate_params = _validate_params
