"""Run by `test_unconfigured.py`: what a vLLM does that nobody told of EASD, as one JSON line."""

import json
import os
import sys

from in_vllm.conftest import ARGUMENTS, ENVIRONMENT, SPECULATION

os.environ.update(ENVIRONMENT)

import vllm
from vllm.plugins import load_endpoint_plugins
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.sample import rejection_sampler
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.worker_base import WorkerWrapperBase

PROMPTS = [[3, 5, 7, 9], [10, 12], [21], [4, 44, 64, 2, 13]]

engine = vllm.LLM(**ARGUMENTS, speculative_config=SPECULATION)
# Greedy: sampled speculation of the CPU build draws from memory that was never set.
params = vllm.SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
done = engine.generate([{"prompt_token_ids": ids} for ids in PROMPTS], params, use_tqdm=False)

runner = engine.llm_engine.model_executor.driver_worker.worker.model_runner
functions = [
    rejection_sampler.rejection_sample,
    rejection_sampler.expand_batch_to_tokens,
    runner._sample,
    runner.drafter._sample_draft_tokens,
    GPUModelRunner._sample,
    WorkerWrapperBase.init_device,
    InputProcessor._validate_params,
    load_endpoint_plugins,
]
report = {
    "tokens": [list(answer.outputs[0].token_ids) for answer in done],
    "modules": sorted(name for name in sys.modules if name.split(".")[0] == "easd"),
    "files": [function.__code__.co_filename for function in functions],
}
print("REPORT", json.dumps(report))
