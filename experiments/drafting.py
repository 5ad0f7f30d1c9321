"""Compares block efficiency by draft temperature and by coupling, in lossless speculation.

Every system decodes the same prompts with independent noise at T = 1. Ratios are over the maximal
coupling at the target's own temperature, with paired bootstrap intervals over prompts.

    python experiments/drafting.py lab-a:0.2 lab-ad:0.5 lab-c:0.4 --texts 4000 --tokens 40
    python experiments/drafting.py smollm2 --texts 160 --tokens 64
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from coupling import interval, per_forward
from prompts import pair_prompts

from easd import Speculative, generate, load_pair


def systems(draft_temperature: float | None) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {"block": {"coupling": "block"}}
    if draft_temperature is not None:
        found["draft temperature"] = {"draft_temperature": draft_temperature}
        found["both"] = {**found["block"], **found["draft temperature"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="+", metavar="PAIR[:DRAFT_TEMPERATURE]")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--gamma", type=int, default=4)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for spec in asked.pairs:
        name, _, temperature = spec.partition(":")
        pair = load_pair(name, device="cpu")
        prompts = pair_prompts(pair, asked.texts, seed=5)

        def decoded(options: dict[str, Any], pair=pair, prompts=prompts):
            return per_forward(
                generate(
                    pair.target,
                    pair.draft,
                    prompts,
                    tokenizer=pair.tokenizer,
                    rule=Speculative(),
                    gamma=asked.gamma,
                    max_new_tokens=asked.tokens,
                    batch_size=64,
                    seed=3,
                    **options,
                )
            )

        base = decoded({})
        tokens, blocks = base.sum(0)
        print(
            f"{name}, {len(prompts)} texts, gamma {asked.gamma}: {tokens / blocks:.3f} by maximal"
        )
        for label, options in systems(float(temperature) if temperature else None).items():
            value, low, high = interval(decoded(options), base)
            print(f"  {label:18} {value:.3f} [{low:.3f}, {high:.3f}]", flush=True)


if __name__ == "__main__":
    main()
