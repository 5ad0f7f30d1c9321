"""Checks that an optimisation changes no text: every rule under shared noise, before and after.

Run it in a checkout of the earlier commit, then in this one:

    python experiments/texts.py --pair smollm2 --out before.json
    python experiments/texts.py --pair smollm2 --against before.json

Another order of summation can swap two tokens whose exponential clocks nearly tie, so a float32
text that differs is not yet a bug (`pytest -m slow tests/end_to_end/test_lossless.py` checks such
ties). With `--dtype float64` none should differ.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from prompts import pair_prompts

from easd import EASD, RULES, generate, load_pair
from easd.core.rules import Rule, TargetOnly


def rules(tau_h: float) -> dict[str, Rule]:
    easd = EASD(tau_h=tau_h)
    return {
        "target": TargetOnly(),
        "speculative": RULES["speculative"](),
        "easd": easd,
        "easd draft_top": replace(easd, penalise="draft_top"),
        "easd maximal": replace(easd, draft_at_bonus=True),
        "pool": RULES["pool"](tau_h=tau_h, b=0.5),
        "relaxed-pool": RULES["relaxed-pool"](tau_h=tau_h),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tau-h", type=float, default=1.5)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--gamma", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--out", type=Path)
    chosen.add_argument("--against", type=Path)
    args = parser.parse_args()
    pair = load_pair(args.pair, dtype=getattr(torch, args.dtype), device="cpu")
    prompts = pair_prompts(pair, args.count, seed=0)
    texts = {}
    for name, rule in rules(args.tau_h).items():
        found = generate(
            pair.target,
            None if name == "target" else pair.draft,
            prompts,
            tokenizer=pair.tokenizer,
            rule=rule,
            coupling="shared",
            gamma=args.gamma,
            max_new_tokens=args.tokens,
            batch_size=args.batch,
        )
        texts[name] = [list(text.token_ids) for text in found]
    if args.out is not None:
        args.out.write_text(json.dumps(texts), encoding="utf-8")
        return
    before = json.loads(args.against.read_text(encoding="utf-8"))
    print(f"{args.dtype}: texts that differ from {args.against.name}")
    for name, found in texts.items():
        differ = [i for i, (a, b) in enumerate(zip(before[name], found, strict=True)) if a != b]
        tokens = sum(map(len, found))
        print(f"{name:16} {len(differ)} of {len(found)} texts, {tokens} tokens {differ or ''}")


if __name__ == "__main__":
    main()
