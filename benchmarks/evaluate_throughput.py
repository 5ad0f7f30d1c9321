"""Texts a second of an evaluation at batch 16 over batch 1, in one interleaved run.

python benchmarks/evaluate_throughput.py [--pair lab-a] [--texts 64] [--rounds 5]
"""

import argparse
import time
from dataclasses import replace

import torch
from common import describe, interval, quiet

from easd import load_pair
from easd.core.rules import EASD, Speculative, TargetOnly
from easd.engine.chat import encode
from easd.engine.settings import Settings
from easd.evaluate.decoding import decode_by_rule
from easd.tasks import load_task

RULES = {"target": TargetOnly(), "speculative": Speculative(), "easd": EASD()}


def main() -> None:
    quiet()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pair", default="lab-a")
    parser.add_argument("--task", help="the pair's own, or gsm8k")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pair = load_pair(arguments.pair, device="cpu")
    lab = arguments.pair.startswith("lab")
    task = load_task(arguments.task or (arguments.pair if lab else "gsm8k"), limit=arguments.texts)
    prompts = [encode(item.prompt, pair.tokenizer) for item in task.items]
    print(f"{arguments.pair}, {len(prompts)} texts, {describe()}")
    for name, rule in RULES.items():
        settings = Settings(
            rule=rule,
            coupling="shared",
            gamma=3,
            max_new_tokens=arguments.max_new_tokens or task.max_new_tokens,
        )
        ratios, rates = [], []
        for _ in range(arguments.rounds):
            seconds = {}
            for batch in (1, 16):
                begin = time.perf_counter()
                decoded = decode_by_rule(
                    pair,
                    prompts,
                    replace(settings, batch_size=batch),
                    first=0,
                    with_tokens=False,
                )
                seconds[batch] = time.perf_counter() - begin
            tokens = sum(len(text["token_ids"]) for text in decoded.texts)
            ratios.append(seconds[1] / seconds[16])
            rates.append(tokens / seconds[16])
        middle, low, high = interval(ratios)
        print(
            f"  {name:12} batch 16 / batch 1: {middle:.2f} [{low:.2f}, {high:.2f}], "
            f"{sorted(rates)[len(rates) // 2]:,.0f} tok/s at batch 16",
            flush=True,
        )


if __name__ == "__main__":
    main()
