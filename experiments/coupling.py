"""Compares block efficiency of EASD as published and with the maximal coupling.

Both ask the gate at the bonus position, so whole texts have the same law. They decode the same
prompts, and so does lossless speculative decoding.

    python experiments/coupling.py lab-a:0.34 lab-c:0.38 lab-m:0.63 --texts 1500 --tokens 40
    python experiments/coupling.py smollm2:1.5 --texts 160 --tokens 64
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from prompts import pair_prompts

from easd import EASD, Speculative, generate, load_pair
from easd.core.couplings import Coupling
from easd.core.rules import Rule

DRAWS = 2000


def per_forward(texts) -> np.ndarray:
    """Returns tokens and blocks (target forwards) per text, [texts, 2]."""
    return np.array([[len(text.token_ids), text.counts.blocks] for text in texts])


def interval(own: np.ndarray, base: np.ndarray) -> tuple[float, float, float]:
    """Returns the ratio of block efficiencies with its 95 % bootstrap interval over prompts."""

    def ratio(at) -> float:
        (tokens, blocks), (base_tokens, base_blocks) = own[at].sum(0), base[at].sum(0)
        return (tokens / blocks) / (base_tokens / base_blocks)

    generator = np.random.default_rng(0)
    draws = [ratio(generator.integers(0, len(own), len(own))) for _ in range(DRAWS)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return ratio(slice(None)), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="+", help="pair:tau_h in nats")
    parser.add_argument("--texts", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--gamma", type=int, default=4)
    parser.add_argument("--batch", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"gamma {args.gamma}; tokens per target forward, over lossless [95 %]")
    for named in args.pairs:
        name, _, tau_h = named.partition(":")
        pair = load_pair(name, device="cpu")
        gate = EASD(tau_h=float(tau_h), draft_at_bonus=True)
        systems: dict[str, tuple[Rule, Coupling]] = {
            "lossless": (Speculative(), "maximal"),
            "published": (gate, "published"),
            "maximal": (gate, "maximal"),
        }
        prompts = pair_prompts(pair, args.texts, seed=5)
        found = {}
        for system, (rule, coupling) in systems.items():
            texts = generate(
                pair.target,
                pair.draft,
                prompts,
                tokenizer=pair.tokenizer,
                rule=rule,
                coupling=coupling,
                gamma=args.gamma,
                max_new_tokens=args.tokens,
                batch_size=args.batch,
            )
            found[system] = per_forward(texts)
            tokens, blocks = found[system].sum(0)
            ratio = "{:.4f} [{:.4f}, {:.4f}]".format(*interval(found[system], found["lossless"]))
            print(f"{name:8} {system:13} {tokens / blocks:.3f}   {ratio}")


if __name__ == "__main__":
    main()
