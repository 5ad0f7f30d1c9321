"""Shared-noise speculative decoding against the target alone, token for token.

    python benchmarks/lossless.py --pair smollm2 --data gsm8k.jsonl --count 20 --tokens 128

In exact arithmetic the texts are equal. In floating point a forward over n tokens rounds
differently from one over 1 token, so two tokens whose clocks ring almost together can swap; such a
flip is shown with its margin, and the texts after it are not compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import chat_ids, describe, load_prompts, quiet

from easd import Speculative, generate, load_pair
from easd.core.noise import Noise, request_key
from easd.core.rules import TargetOnly


def margin(pair, ids: list[int], number: int) -> float:
    """How much later the second clock rings than the first, relative, at the next position."""
    with torch.inference_mode():
        logits = pair.target(torch.tensor([ids], device=pair.target.device)).logits[0, -1]
    noise = Noise(
        keys=torch.tensor([request_key(0, number)]),
        start=torch.tensor([len(ids)]),
        coupling="shared",
    ).emit(torch.zeros(1, dtype=torch.long), logits.shape[-1])
    probs = logits.double().softmax(-1).cpu()
    first, second = (probs / noise[0]).topk(2).values.tolist()
    return first / second - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--gamma", type=int, default=4)
    parser.add_argument("--batch", type=int, default=10)
    args = parser.parse_args()
    quiet()
    pair = load_pair(args.pair, dtype=getattr(torch, args.dtype))
    prompts = chat_ids(pair, load_prompts(args.data, args.count))
    options = {
        "tokenizer": pair.tokenizer,
        "coupling": "shared",
        "gamma": args.gamma,
        "max_new_tokens": args.tokens,
        "batch_size": args.batch,
    }
    print(f"{describe()}, {args.dtype}, gamma {args.gamma}, batch {args.batch}")
    alone = generate(pair.target, None, prompts, rule=TargetOnly(), **options)
    ours = generate(pair.target, pair.draft, prompts, rule=Speculative(), **options)
    compared = differing = 0
    for a, b in zip(alone, ours, strict=True):
        first = next(
            (i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y),
            None,
        )
        compared += len(a.token_ids) if first is None else first + 1
        if first is None:
            assert len(a.token_ids) == len(b.token_ids)
            continue
        differing += 1
        found = margin(pair, [*a.prompt_ids, *a.token_ids[:first]], a.number)
        print(f"prompt {a.number}: flip at token {first}, clocks {found:.1e} apart")
    accepted = sum(g.counts.accepted for g in ours)
    examined = max(sum(g.counts.examined for g in ours), 1)
    print(f"{compared} tokens compared, {differing} differ; acceptance {accepted / examined:.3f}")


if __name__ == "__main__":
    main()
