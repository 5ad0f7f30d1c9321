"""Checks each request's rule before it is queued, so that an invalid one gets an error."""

from __future__ import annotations

from functools import wraps
from typing import Any

from easd.errors import EasdError
from easd.integrations.vllm import KEY, is_configured
from easd.integrations.vllm.compatibility import REQUESTS, check_functions
from easd.integrations.vllm.serving import Serving


def check_requests() -> None:
    """Makes vLLM's check of sampling parameters read `extra_args["easd"]` too.

    Invalid values raise vLLM's `VLLMValidationError`: status 400 over HTTP.

    Raises:
        ConfigError: This vLLM's check has another signature.
    """
    check_functions(REQUESTS)
    from vllm.exceptions import VLLMValidationError  # pyright: ignore
    from vllm.v1.engine.input_processor import InputProcessor  # pyright: ignore

    stock: Any = InputProcessor._validate_params
    if getattr(stock, "asks_easd", False):
        return

    @wraps(stock)
    def _validate_params(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if is_configured(self.vllm_config):
            if not hasattr(self, "easd_serving"):
                self.easd_serving = Serving.parse(self.vllm_config.additional_config[KEY])
            try:
                self.easd_serving.rule_for(getattr(params, "extra_args", None))
            except EasdError as error:
                raise VLLMValidationError(str(error), parameter="extra_args") from None
        return stock(self, params, *args, **kwargs)

    _validate_params.asks_easd = True  # type: ignore[attr-defined]
    InputProcessor._validate_params = _validate_params
