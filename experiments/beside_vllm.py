"""Accuracies of one rule file in vLLM and in easd's engine, on the same problems.

    easd tune --pair lab-a --task lab-a:4000-5000 --out runs/tune
    OMP_NUM_THREADS=1 LD_PRELOAD=.venv-vllm/lib/libiomp5.so .venv-vllm/bin/python \
        experiments/beside_vllm.py lab-a runs/tune/tuning.json --easd '{"tau_h": 0.2}'

In vLLM the first token after a prompt has no draft and follows the target. Both engines are
compared with that, easd's by `exact_first` = 1, and what it costs is easd's engine without it.
Problems of the file are not decoded.
"""

import argparse
import json
import os
from dataclasses import asdict, replace

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
)

import torch
import vllm  # pyright: ignore
from vllm.v1.sample import rejection_sampler  # pyright: ignore

from easd import Settings, load_pair
from easd.config import parse_rule, rule_to_dict
from easd.diagnose.calibration_file import read_calibration
from easd.engine.generate import decode, make_requests
from easd.evaluate.prompting import encode_item
from easd.integrations.vllm import cpu_expand
from easd.pairs import lab
from easd.stats.paired import equivalence, paired_difference
from easd.tasks import load_task

GAMMA = 3
MARGIN = 0.02


def serve(pair, easd):
    """Starts vLLM's engine with the plugin."""
    engine = vllm.LLM(
        model=str(lab.folder(pair, "target")),
        dtype="float32",
        max_model_len=lab.CONTEXT_LENGTH,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_num_seqs=64,
        speculative_config={
            "method": "draft_model",
            "model": str(lab.folder(pair, "draft")),
            "num_speculative_tokens": GAMMA,
            "draft_sample_method": "probabilistic",
        },
        additional_config={"easd": {**easd, "coupling": "maximal"}},
    )
    cpu_expand.mend(rejection_sampler)  # Without it sampled text is garbage (vllm#55005).
    return engine


def in_vllm(engine, prompts, rule, temperature, seed):
    torch.manual_seed(seed)
    params = vllm.SamplingParams(
        temperature=temperature,
        max_tokens=lab.MAX_NEW_TOKENS,
        extra_args={"easd": False if rule is None else rule_to_dict(rule)},
    )
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    found = engine.generate(asked, params, use_tqdm=False)
    return [list(each.outputs[0].token_ids) for each in found]


def in_easd(pair, prompts, settings):
    written = [[] for _ in prompts]
    for record in decode(pair, make_requests(pair, prompts, settings), settings):
        for row in record.rows:
            if row.finished:
                written[row.request.number] = list(row.new_ids)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair")
    parser.add_argument("rules", help="a file of easd tune")
    parser.add_argument("--easd", type=json.loads, default={"tau_h": 0.2, "tau_o": 0.8})
    parser.add_argument("--problems", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tuned = parse_rule(read_calibration(options.rules).fill({}))
    easd = parse_rule({"name": "easd", "draft_at_bonus": True, **options.easd})
    engine = serve(options.pair, {"calibration": options.rules})
    pair, task = load_pair(options.pair), load_task(options.pair, limit=options.problems)
    prompts = [encode_item(item, task, pair.tokenizer, None) for item in task.items]

    def graded(texts):
        answers = zip(task.items, map(pair.tokenizer.decode, texts), strict=True)
        return [task.grade(item, text).correct for item, text in answers]

    for name, rule in (("tuned", tuned), ("easd", easd), ("speculative", None)):
        print(name, "" if rule is None else rule_to_dict(rule), flush=True)
        for temperature in (1.0, 0.0):
            settings = Settings(
                rule="speculative" if rule is None else rule,
                coupling="maximal",
                gamma=GAMMA,
                temperature=temperature,
                max_new_tokens=lab.MAX_NEW_TOKENS,
                batch_size=64,
                exact_first=1,
                seed=1,
            )
            theirs = in_vllm(engine, prompts, rule, temperature, 1)
            ours = in_easd(pair, prompts, settings)
            whole = in_easd(pair, prompts, replace(settings, exact_first=0))
            same = sum(a == b for a, b in zip(theirs, ours, strict=True))
            right = [graded(texts) for texts in (theirs, ours, whole)]
            shares = [f"{100 * sum(each) / len(each):.2f} %" for each in right]
            print(f"  temperature {temperature:g}: vLLM, easd, easd with the first token: {shares}")
            print(f"    same texts: {same}; {asdict(paired_difference(right[0], right[1]))}")
            print(f"    {asdict(equivalence(right[0], right[1], margin=MARGIN))}", flush=True)


if __name__ == "__main__":
    main()
