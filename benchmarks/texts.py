"""Which texts differ between another checkout and this one, under shared noise.

    git worktree add ../before <commit>
    python benchmarks/texts.py --before ../before --pair smollm2 --dtype float64

Under shared noise a text depends on prompt, seed and law alone, so a change that makes decoding
faster changes none of them, but for rounding: where two tokens win the race for a position by
nearly the same number, the last bits decide. For each text that differs, the two numbers of the
target's own race are computed at the first place where it does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from common import PROMPTS, describe, quiet

from easd import EASD, Speculative, generate, load_pair
from easd.core.noise import Noise, request_key

NEAR = 1e-3  # relative difference of the two clocks
HERE = Path(__file__).resolve()


def texts(pair, args: argparse.Namespace) -> list[list[int]]:
    """Token ids of every prompt by both rules."""
    found = []
    for rule in (Speculative(), EASD(tau_h=1.5)):
        done = generate(
            pair.target,
            pair.draft,
            prompts(pair, args),
            rule=rule,
            coupling="shared",
            gamma=3,
            max_new_tokens=args.tokens,
            batch_size=args.batch,
        )
        found += [text.token_ids for text in done]
    return found


def prompts(pair, args: argparse.Namespace) -> list[list[int]]:
    if pair.tokenizer.vocab_size < 1000:
        return [[3 + 7 * row % 90, 5, 10 + row % 90, 9] for row in range(args.texts)]
    asked = [f"{PROMPTS[row % len(PROMPTS)]} ({row})" for row in range(args.texts)]
    return pair.tokenizer(asked)["input_ids"]


def elsewhere(folder: Path, args: argparse.Namespace) -> list[list[int]]:
    """The texts of another checkout."""
    options = ["--pair", args.pair, "--dtype", args.dtype, "--texts", str(args.texts)]
    options += ["--tokens", str(args.tokens), "--batch", str(args.batch), "--emit"]
    run = subprocess.run(
        [sys.executable, str(HERE), *options],
        env=os.environ | {"PYTHONPATH": str(folder.resolve() / "src")},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


@torch.inference_mode()
def margin(pair, prompt: list[int], number: int, text: list[int], other: int) -> float:
    """How much later the clock of `other` rings than that of the last token of `text`."""
    ids = [*prompt, *text]
    logits = pair.target(torch.tensor([ids[:-1]])).logits[0, -1].double()
    noise = Noise(keys=torch.tensor([request_key(0, number)]), start=torch.tensor([len(ids) - 1]))
    clocks = noise.emit(torch.tensor([0]), len(logits))[0] / logits.softmax(-1)
    return float((clocks[other] / clocks[text[-1]] - 1).abs())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="the other checkout")
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--emit", action="store_true", help="print the texts of this checkout")
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    pair = load_pair(args.pair, dtype=getattr(torch, args.dtype), device="cpu")
    ours = texts(pair, args)
    if args.emit:
        print(json.dumps(ours))
        return
    print(f"{args.pair}, {args.dtype}, {args.texts} texts by each of two rules, {describe()}")
    margins, asked = [], prompts(pair, args)
    for place, (old, new) in enumerate(zip(elsewhere(args.before, args), ours, strict=True)):
        if old != new:
            at = next(
                i for i, pair_ in enumerate(zip(old, new, strict=False)) if len(set(pair_)) > 1
            )
            number = place % args.texts
            margins.append(margin(pair, asked[number], number, old[: at + 1], new[at]))
    near = sum(each < NEAR for each in margins)
    print(f"{len(margins)} of {len(ours)} texts differ, {near} of them by a near-tie: {margins}")


if __name__ == "__main__":
    main()
