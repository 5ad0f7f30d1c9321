"""What is checked where an engine starts; whatever does not fit stops it with one line."""

from __future__ import annotations

import logging
import re
from typing import Any

from easd.config import rule_to_dict
from easd.errors import ConfigError
from easd.integrations.vllm import EXTENSION, KEY
from easd.integrations.vllm.requests import check_requests
from easd.integrations.vllm.serving import Serving

TESTED = ("0.32",)

logger = logging.getLogger("vllm.easd")


def prepare(config: Any) -> None:
    """Checks a `VllmConfig` that asks for EASD, and has its workers load the extension.

    Raises:
        EasdError: A setting is unknown or cannot be served.
    """
    serving = Serving.parse(config.additional_config[KEY])
    check_version()
    check_speculation(config)
    if config.use_v2_model_runner:
        check_second_runner(config)
    parallel = config.parallel_config
    if parallel.worker_extension_cls not in ("", EXTENSION):
        raise ConfigError(
            f"worker_extension_cls = {parallel.worker_extension_cls!r} takes the place of "
            f"{EXTENSION}; leave it out"
        )
    parallel.worker_extension_cls = EXTENSION
    check_requests()
    logger.info("easd: %s, lossless_only=%s", rule_to_dict(serving.rule), serving.lossless_only)


def check_version() -> None:
    """Refuses a vLLM whose sampler was never tried.

    Raises:
        ConfigError: It is another minor version than the tested ones.
    """
    from vllm import __version__  # pyright: ignore

    found = re.match(r"\d+\.\d+", __version__)
    if found is None or found[0] not in TESTED:
        raise ConfigError(f"vLLM {__version__} was not tested with easd; install vLLM {TESTED[-1]}")


def check_speculation(config: Any) -> None:
    """Refuses what leaves the gate without draft probabilities.

    Raises:
        ConfigError: There is no draft model, or it is not sampled or verified as needed.
    """
    speculative = config.speculative_config
    if speculative is None:
        raise ConfigError(
            "easd needs a draft model; give --speculative-config "
            '\'{"method": "draft_model", "model": ..., "draft_sample_method": "probabilistic"}\''
        )
    for name, wanted in (
        ("method", "draft_model"),
        ("draft_sample_method", "probabilistic"),
        ("rejection_sample_method", "standard"),
    ):
        value = getattr(speculative, name, None)
        if value != wanted:
            raise ConfigError(
                f'{name} = {value!r} cannot be served with easd; set "{name}": "{wanted}" '
                "in --speculative-config"
            )


def check_second_runner(config: Any) -> None:
    """Refuses what the V2 model runner can do and the plugin cannot follow.

    Raises:
        ConfigError: Such a setting is on.
    """
    if getattr(config, "watermark_config", None) is not None:
        raise ConfigError("watermarking was not tested with easd; leave out watermark_config")
    if config.parallel_config.enable_batch_sharded_sampling:
        raise ConfigError(
            "enable_batch_sharded_sampling = True cannot be served with easd, whose counts would "
            "be those of one rank's requests; leave it out"
        )
