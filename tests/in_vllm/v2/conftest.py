"""Engines with vLLM's V2 model runner, which wants a GPU.

On one, run `pytest -m vllm -W ignore tests/in_vllm/v2`; elsewhere, `in_vllm/test_v2.py` does.
"""

import os

import pytest
import torch
from in_vllm.conftest import ARGUMENTS, SPECULATION

if os.environ.get("TRITON_INTERPRET") == "1":
    from in_vllm.v2.interpreter import prepare

    prepare()
elif not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def start():
    """Makes an engine; `stock`, `never` and `gated` of the folder above are made by it, too."""
    from vllm import LLM

    def made(easd=None, **arguments):
        defaults = {"max_num_seqs": 8, "speculative_config": SPECULATION}
        engine = LLM(
            **{**ARGUMENTS, **defaults, "gpu_memory_utilization": 0.1, **arguments},
            additional_config={} if easd is None else {"easd": easd},
        )
        assert engine.llm_engine.vllm_config.use_v2_model_runner
        return engine

    return made


@pytest.fixture(scope="session")
def busy(start):
    """As `gated`, with more of what servers use, and fewer slots than requests."""
    return start(
        {"tau_h": 0.05, "tau_o": 0.4},
        enable_prefix_caching=True,
        enable_chunked_prefill=True,
        max_num_batched_tokens=24,
        max_num_seqs=3,
        logprobs_mode="processed_logprobs",
    )
