"""What is checked where an engine starts; whatever does not fit stops it with one line."""

from __future__ import annotations

import logging
from typing import Any

from easd.config import rule_to_dict
from easd.errors import ConfigError
from easd.integrations.vllm import EXTENSION, KEY
from easd.integrations.vllm.requests import check_requests
from easd.integrations.vllm.serving import Serving

# What they are drawn from, they do not say, or it is one token.
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
    """Checks a `VllmConfig` that asks for EASD, and has its workers load the extension.

    Raises:
        EasdError: A setting is unknown or cannot be served.
    """
    serving = Serving.parse(config.additional_config[KEY])
    check_speculation(config, serving)
    if config.speculative_config.rejection_sample_method == "block":
        # Workers read the same mapping; no rule's default is to be verified so.
        config.additional_config[KEY] = {**config.additional_config[KEY], "coupling": "block"}
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
    """Refuses what leaves a rule without draft probabilities, or does not verify as it asks.

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
            f"method = {speculative.method!r} cannot be served with easd: it says no draft "
            'probabilities, which rules look at; use "draft_model", "eagle3", "mtp" or another '
            "that does"
        )
    if speculative.draft_sample_method != "probabilistic":
        raise ConfigError(
            f"draft_sample_method = {speculative.draft_sample_method!r} cannot be served with "
            'easd; set "draft_sample_method": "probabilistic" in --speculative-config'
        )
    check_verification(speculative.rejection_sample_method, config.use_v2_model_runner, serving)


def check_verification(method: str, second_runner: bool, serving: Serving) -> None:
    """Refuses a `rejection_sample_method` that is another coupling than the rule's.

    Raises:
        ConfigError: It is, or the V1 model runner cannot do it.
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
