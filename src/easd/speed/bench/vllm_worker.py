"""Decodes with vLLM for `VllmEngines`, under the interpreter of an environment that has vLLM.

It answers each line of its input, a JSON object, with one of its own. That environment need not
have this package, so nothing of it is imported by name.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from time import perf_counter, process_time
from typing import Any


def main() -> None:
    """Starts the engine that the first argument describes, and answers until its input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints to standard output.
    options = json.loads(sys.argv[1])
    import torch
    import vllm  # pyright: ignore
    from vllm.v1.sample import rejection_sampler  # pyright: ignore

    engine = vllm.LLM(**options["engine"])
    # Without it, sampled speculation on a CPU is garbage (vllm#55005).
    runpy.run_path(options["cpu_expand"])["mend"](rejection_sampler)
    _say(answers, {"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        torch.manual_seed(asked["seed"])
        params = vllm.SamplingParams(**asked["sampling"])
        prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
        begin, cpu_begin = perf_counter(), process_time()
        texts = engine.generate(prompts, params, use_tqdm=False)
        cpu_seconds, seconds = process_time() - cpu_begin, perf_counter() - begin
        tokens = sum(len(text.outputs[0].token_ids) for text in texts)
        _say(answers, {"seconds": seconds, "cpu_seconds": cpu_seconds, "tokens": tokens})


def _say(answers: Any, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
