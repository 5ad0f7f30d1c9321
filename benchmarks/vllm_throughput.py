"""Tokens per second of the plugin inside vLLM over vLLM's own speculation, interleaved in one run.

    export LD_PRELOAD=$PWD/.venv-vllm/lib/libiomp5.so OMP_NUM_THREADS=1
    export MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=4000000000
    .venv-vllm/bin/python benchmarks/vllm_throughput.py --pair smollm2 --batch 1

Three engines in one process: one never heard of easd, one follows EASD as published, and one draws
from laws. Where the gate never opens all emit the same tokens, so that the ratio is what asking the
gate costs; where it opens, tokens are refused, too, and the ratio is what users see. Seconds are
those of the processor, which other processes disturb less. The draft of `smollm2` has its target's
full head here: vLLM knows no reduced one. The allocator keeps its memory, as with the tcmalloc that
vLLM's manual asks for.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from collections import Counter
from importlib.resources import files
from pathlib import Path
from time import process_time

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
)

import full_head
import torch
import vllm  # pyright: ignore
from common import PROMPTS, describe, interval, quiet
from transformers import AutoTokenizer
from vllm.v1.sample import rejection_sampler  # pyright: ignore

from easd.integrations.vllm import cpu_expand

# Where the gate refuses some of the tokens, as a user's setting would.
OPENING = {"lab-a": {"tau_h": 0.05, "tau_o": 0.8}, "smollm2": {"tau_h": 1.5, "tau_o": 0.8}}
NEVER = {"tau_h": 1e9}  # the gate is asked everything all the same
POOL = {"name": "pool-everywhere", "a": 1.4, "b": 0.5}


def folders(pair: str, scratch: Path) -> tuple[Path, Path]:
    """Target and draft as vLLM loads them."""
    if pair == "lab-a":
        lab = Path(str(files("easd.pairs") / "data" / pair))
        return lab / "target", lab / "draft"
    draft = scratch / "draft"
    return full_head.write(draft), draft


def start(target: Path, draft: Path, args: argparse.Namespace, easd: dict | None) -> vllm.LLM:
    engine = vllm.LLM(
        model=str(target),
        dtype="float32",
        max_model_len=64 if args.pair == "lab-a" else 256,
        seed=0,
        enforce_eager=True,
        enable_prefix_caching=False,
        speculative_config={
            "method": "draft_model",
            "model": str(draft),
            "num_speculative_tokens": args.gamma,
            "draft_sample_method": "probabilistic",
        },
        additional_config={} if easd is None else {"easd": easd},
    )
    cpu_expand.mend(rejection_sampler)  # without it stock's sampled text is garbage (vllm#55005)
    return engine


def prompts(target: Path, args: argparse.Namespace) -> list[list[int]]:
    if args.pair == "lab-a":
        return [[3 + 7 * row % 90, 5, 10 + row, 9] for row in range(args.batch)]
    tokenizer = AutoTokenizer.from_pretrained(target)
    turns = [[{"role": "user", "content": PROMPTS[row % 8]}] for row in range(args.batch)]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]


class Stopwatch:
    """Seconds spent in `rejection_sample`, the gate's with the stock kernels'."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inner = rejection_sampler.rejection_sample
        rejection_sampler.rejection_sample = self

    def __call__(self, *args, **kwargs) -> torch.Tensor:
        begin = process_time()
        output = self._inner(*args, **kwargs)
        self.seconds += process_time() - begin
        return output


def decode(
    engine: vllm.LLM, easd: object, asked: list, tokens: int, seed: int
) -> tuple[int, float]:
    """Tokens and seconds."""
    torch.manual_seed(seed)
    params = vllm.SamplingParams(
        temperature=1.0,
        max_tokens=tokens,
        ignore_eos=True,
        extra_args=None if easd is None else {"easd": easd},
    )
    begin = process_time()
    done = engine.generate(asked, params, use_tqdm=False)
    seconds = process_time() - begin
    return sum(len(answer.outputs[0].token_ids) for answer in done), seconds


def counts(engine: vllm.LLM) -> Counter:
    """Of the plugin, since its engine started."""
    return Counter(engine.collective_rpc("easd_statistics")[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", choices=list(OPENING), default="smollm2")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--gamma", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=40, help="new tokens a prompt")
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as scratch:
        target, draft = folders(args.pair, Path(scratch))
        stock = start(target, draft, args, None)
        plugin = start(target, draft, args, NEVER)
        maximal = start(target, draft, args, {**NEVER, "coupling": "maximal"})
    asked = [{"prompt_token_ids": ids} for ids in prompts(target, args)]
    systems = {
        "stock": (stock, None),
        "switched off": (plugin, False),
        "gate never opens": (plugin, NEVER),
        "gate opens": (plugin, OPENING[args.pair]),
        "maximal, never opens": (maximal, NEVER),
        "maximal, opens": (maximal, OPENING[args.pair]),
        "pool": (maximal, {**POOL, "draft_at_bonus": False}),
        "pool, redrawn": (maximal, POOL),
    }
    speeds: dict[str, list[float]] = {name: [] for name in systems}
    shares: dict[str, list[float]] = {name: [] for name in systems}
    counted: dict[str, Counter] = {name: Counter() for name in systems}
    watch = Stopwatch()
    for round_ in range(args.rounds + 1):
        for name in random.Random(round_).sample(list(systems), len(systems)):
            watch.seconds = 0.0
            engine, easd = systems[name]
            asked_for = plugin if engine is stock else engine
            before = counts(asked_for)
            tokens, seconds = decode(engine, easd, asked, args.tokens, round_)
            if round_ > 0:  # the first warms up
                speeds[name].append(tokens / seconds)
                shares[name].append(watch.seconds / seconds)
                counted[name] += counts(asked_for) - before
    print(f"{args.pair}, batch {args.batch}, gamma {args.gamma}; vLLM {vllm.__version__}")
    print(describe())
    for name, found in speeds.items():
        ratios = [ours / theirs for ours, theirs in zip(found, speeds["stock"], strict=True)]
        middle, low, high = interval(ratios)
        print(
            f"{name:20} {statistics.median(found):8.1f} tok/s, "
            f"over stock {middle:.3f} [{low:.3f}, {high:.3f}], "
            f"{100 * statistics.median(shares[name]):.1f} % of it in rejection_sample"
        )
    for name in ("gate opens", "maximal, opens"):
        print(f"{name}:", dict(counted[name]))


if __name__ == "__main__":
    main()
