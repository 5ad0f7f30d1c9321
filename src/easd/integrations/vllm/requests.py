"""Requests are checked where they come in, so that a bad one is answered and not decoded."""

from __future__ import annotations

from functools import wraps
from typing import Any

from easd.errors import EasdError
from easd.integrations.vllm import KEY
from easd.integrations.vllm.seams import REQUESTS, check_seams
from easd.integrations.vllm.serving import Serving


def check_requests() -> None:
    """Has vLLM's own check of sampling parameters read `extra_args["easd"]` too.

    What does not fit raises vLLM's `VLLMValidationError`: status 400 over HTTP.

    Raises:
        ConfigError: This vLLM's check is another.
    """
    check_seams(REQUESTS)
    from vllm.exceptions import VLLMValidationError  # pyright: ignore
    from vllm.v1.engine.input_processor import InputProcessor  # pyright: ignore

    stock: Any = InputProcessor._validate_params
    if getattr(stock, "asks_easd", False):
        return

    @wraps(stock)
    def _validate_params(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        values = self.vllm_config.additional_config
        if isinstance(values, dict) and KEY in values:
            if not hasattr(self, "easd_serving"):
                self.easd_serving = Serving.parse(values[KEY])
            try:
                self.easd_serving.rule_for(getattr(params, "extra_args", None))
            except EasdError as error:
                raise VLLMValidationError(str(error), parameter="extra_args") from None
        return stock(self, params, *args, **kwargs)

    _validate_params.asks_easd = True  # type: ignore[attr-defined]
    InputProcessor._validate_params = _validate_params
