"""Checks of an engine's configuration at its start, which stop it with a one-line error."""

from __future__ import annotations

import logging
from typing import Any

from easd.config import rule_to_dict
from easd.errors import ConfigError
from easd.integrations.vllm import EXTENSION, KEY
from easd.integrations.vllm.requests import check_requests
from easd.integrations.vllm.serving import Serving

# Drafters that return no distribution, or one token as certain.
WITHOUT_PROBABILITIES = (
    "ngram",
    "ngram_gpu",
    "suffix",
    "medusa",
    "mlp_speculator",
    "custom_class",
    "extract_hidden_states",
)

logger = logging.getLogger("vllm.easd")


def prepare(config: Any) -> None:
    """Checks a `VllmConfig` with settings of EASD, and makes its workers load the extension.

    Raises:
        EasdError: A setting is unknown or cannot be served.
    """
    values = config.additional_config[KEY]
    serving = Serving.parse(values)
    check_speculation(config, serving)
    if config.speculative_config.rejection_sample_method == "block":
        # Workers read the same mapping, and no rule's default coupling is block.
        config.additional_config[KEY] = {**values, "coupling": "block"}
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


def check_speculation(config: Any, serving: Serving) -> None:
    """Refuses speculation without draft probabilities or with an unsupported verification.

    Raises:
        ConfigError: There is no draft, or it is not sampled or verified as needed.
    """
    speculative = config.speculative_config
    if speculative is None:
        raise ConfigError(
            "easd needs a draft; give --speculative-config "
            '\'{"method": "draft_model", "model": ..., "draft_sample_method": "probabilistic"}\''
        )
    if speculative.method in WITHOUT_PROBABILITIES:
        raise ConfigError(
            f"method = {speculative.method!r} cannot be served with easd: it returns no draft "
            'probabilities, which rules need; use "draft_model", "eagle3", "mtp" or another '
            "that does"
        )
    if speculative.draft_sample_method != "probabilistic":
        raise ConfigError(
            f"draft_sample_method = {speculative.draft_sample_method!r} cannot be served with "
            'easd; set "draft_sample_method": "probabilistic" in --speculative-config'
        )
    check_verification(speculative.rejection_sample_method, config.use_v2_model_runner, serving)


def check_verification(method: str, second_runner: bool, serving: Serving) -> None:
    """Refuses a `rejection_sample_method` that does not fit the coupling or the model runner.

    Raises:
        ConfigError: It does not fit.
    """
    couplings = {"standard": (None, "published", "maximal"), "block": (None, "block")}
    if method not in couplings:
        raise ConfigError(
            f"rejection_sample_method = {method!r} cannot be served with easd; set "
            '"rejection_sample_method": "standard" in --speculative-config'
        )
    if serving.coupling not in couplings[method]:
        raise ConfigError(
            f"coupling = {serving.coupling!r} and rejection_sample_method = {method!r} do not fit; "
            "leave out the coupling"
        )
    if method == "block" and not second_runner:
        raise ConfigError(
            "rejection_sample_method = 'block' needs vLLM's V2 model runner; set "
            'VLLM_USE_V2_MODEL_RUNNER=1, or use "standard"'
        )


def check_second_runner(config: Any) -> None:
    """Refuses settings of the V2 model runner that the plugin does not support.

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
