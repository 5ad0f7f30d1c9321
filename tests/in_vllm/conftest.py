"""Engines of vLLM's CPU build in this process, over the lab pair that the package brings.

Run by `make test-vllm` in an environment of its own; elsewhere there is nothing to collect.
"""

import os
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

LAB = Path(__file__).parents[2] / "src/easd/pairs/data/lab-a"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
SPECULATION = {
    "method": "draft_model",
    "model": str(LAB / "draft"),
    "num_speculative_tokens": 3,
    "draft_sample_method": "probabilistic",
}
ARGUMENTS = {
    "model": str(LAB / "target"),
    "dtype": "float32",
    "max_model_len": 64,
    "seed": 0,
    "enforce_eager": True,
    "enable_prefix_caching": False,
}


if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    os.environ.update(ENVIRONMENT)


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)


@pytest.fixture(scope="session")
def start():
    """Makes an engine; with `easd` in its additional_config where given."""
    from vllm import LLM
    from vllm.v1.sample import rejection_sampler

    from easd.integrations.vllm import cpu_expand

    kept = []  # An engine that is collected tears down what all engines of a process share.

    def made(easd=None, **arguments):
        asked = {} if easd is None else {"easd": easd}
        engine = LLM(
            **{**ARGUMENTS, "max_num_seqs": 64, "speculative_config": SPECULATION, **arguments},
            additional_config=asked,
        )
        # The stock engine's garbage-text bug is mended as well, to have something to compare with.
        cpu_expand.mend(rejection_sampler)
        kept.append(engine)
        return engine

    return made


@pytest.fixture(scope="session")
def stock(start):
    """No EASD."""
    return start()


@pytest.fixture(scope="session")
def never(start):
    """The gate never opens."""
    return start({"tau_h": "inf"})


@pytest.fixture(scope="session")
def gated(start):
    """The gate opens at about a third of the positions."""
    return start({"tau_h": 0.05, "tau_o": 0.4})


@pytest.fixture(scope="session")
def ahead(start):
    """As `gated`, with steps scheduled before the last one is done."""
    with scheduling_ahead():
        return start({"tau_h": 0.05, "tau_o": 0.4})


@pytest.fixture(scope="session")
def busy(start):
    """As `ahead`, with more of what servers use."""
    with scheduling_ahead():
        return start(
            {"tau_h": 0.05, "tau_o": 0.4},
            enable_prefix_caching=True,
            enable_chunked_prefill=True,
            max_num_batched_tokens=32,
            max_num_seqs=8,
            logprobs_mode="processed_logprobs",
        )


@contextmanager
def scheduling_ahead():
    """Asynchronous scheduling, which vLLM can do on CPU but turns off there."""
    from vllm.platforms.cpu import CpuPlatform

    stock = CpuPlatform.check_and_update_config

    def check_and_update_config(config):
        stock(config)
        config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = staticmethod(check_and_update_config)
    try:
        yield
    finally:
        CpuPlatform.check_and_update_config = stock
