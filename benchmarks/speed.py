"""Tokens per second of every way to decode the same prompts, interleaved in one run.

    python benchmarks/speed.py --pair smollm2 --gamma 3 --batch 1

transformers' assisted generation serves one prompt at a time, so at larger batches it gets the
prompts one after another. Its confidence stop is off: both draft `gamma` tokens a block.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from time import perf_counter

import torch
from common import chat_ids, describe, interval, load_prompts, quiet
from transformers import set_seed

from easd import EASD, Pair, Speculative, generate, load_pair
from easd.core.rules import TargetOnly
from easd.core.types import Rule

OURS: dict[str, Rule] = {
    "target": TargetOnly(),
    "speculative": Speculative(),
    "easd as published": EASD(),
    "easd maximal": EASD(coupling="maximal"),
}
ASSISTED = "transformers assisted"


def ours(pair: Pair, prompts: list[list[int]], rule: Rule, args, seed: int) -> dict[str, float]:
    parts: dict[str, float] = defaultdict(float)

    def watch(record) -> None:
        for part, seconds in record.seconds.items():
            parts[part] += seconds

    begin = perf_counter()
    done = generate(
        pair.target,
        pair.draft,
        prompts,
        tokenizer=pair.tokenizer,
        rule=rule,
        gamma=args.gamma,
        temperature=args.temperature,
        max_new_tokens=args.tokens,
        batch_size=args.batch,
        seed=seed,
        on_step=watch,
    )
    seconds = perf_counter() - begin
    return {
        "seconds": seconds,
        "tokens": sum(len(g.token_ids) for g in done),
        "blocks": sum(g.counts.blocks for g in done),
        "examined": sum(g.counts.examined for g in done),
        "accepted": sum(g.counts.accepted for g in done),
        "penalised": sum(g.counts.penalised for g in done),
        **parts,
    }


def assisted(pair: Pair, prompts: list[list[int]], args, seed: int) -> dict[str, float]:
    set_seed(seed)
    options = (
        {"do_sample": False}
        if args.temperature == 0
        else {
            "do_sample": True,
            "temperature": args.temperature,
            "top_k": 0,
            "top_p": 1.0,
        }
    )
    config = pair.draft.generation_config
    config.num_assistant_tokens = args.gamma
    config.num_assistant_tokens_schedule = "constant"
    config.assistant_confidence_threshold = 0.0
    options["assistant_model"] = pair.draft
    tokens = 0
    begin = perf_counter()
    for prompt in prompts:
        ids = torch.tensor([prompt], device=pair.target.device)
        output = pair.target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=args.tokens,
            pad_token_id=0,
            **options,
        )
        tokens += output.shape[1] - len(prompt)
    return {"seconds": perf_counter() - begin, "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default=None)
    parser.add_argument("--data", type=Path, help="JSON lines with `problem`")
    parser.add_argument("--gamma", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=4, help="prompts in each timed run")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    quiet()
    if args.threads:
        torch.set_num_threads(args.threads)
    pair = load_pair(args.pair, dtype=getattr(torch, args.dtype), device=args.device)
    prompts = chat_ids(pair, load_prompts(args.data, args.prompts))
    print(f"{describe()}, {args.dtype}, {pair.target.device.type}")
    print(
        f"{pair.name}, gamma {args.gamma}, batch {args.batch}, temperature {args.temperature}, "
        f"{args.prompts} prompts x {args.tokens} tokens, {args.repeats} interleaved repeats"
    )
    systems = {
        name: lambda seed, r=rule: ours(pair, prompts, r, args, seed) for name, rule in OURS.items()
    }
    systems[ASSISTED] = lambda seed: assisted(pair, prompts, args, seed)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
    for run in systems.values():
        run(0)  # warm-up
    names = list(systems)
    for repeat in range(args.repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            runs[name].append(systems[name](repeat + 1))
    report(runs)


def report(runs: dict[str, list[dict[str, float]]]) -> None:
    speeds = {name: [r["tokens"] / r["seconds"] for r in found] for name, found in runs.items()}
    head = f"{'system':24}{'tok/s':>8}  {'over target':>22}{'over assisted':>24}"
    print(head + f"{'accept':>8}{'penal.':>8}{'tok/fwd':>8}   prefill/draft/target/verify/commit %")
    for name, found in runs.items():
        line = f"{name:24}{interval(speeds[name])[0]:8.2f}  "
        for base in ("target", ASSISTED):
            ratios = [a / b for a, b in zip(speeds[name], speeds[base], strict=True)]
            line += "{:8.3f} [{:.3f}, {:.3f}] ".format(*interval(ratios))
        total = {key: sum(r.get(key, 0) for r in found) for key in set().union(*found)}
        if total.get("blocks"):
            examined = max(total["examined"], 1)
            parts = [
                100 * total.get(p, 0) / total["seconds"]
                for p in ("prefill", "draft", "target", "verify", "commit")
            ]
            line += f"{total['accepted'] / examined:8.3f}{total['penalised'] / examined:8.4f}"
            line += f"{total['tokens'] / total['blocks']:8.2f}   "
            line += " / ".join(f"{part:.1f}" for part in parts)
        print(line)
    base = speeds["speculative"]
    for name in ("easd as published", "easd maximal"):
        ratios = [a / b for a, b in zip(speeds[name], base, strict=True)]
        print("{} / speculative: {:.3f} [{:.3f}, {:.3f}]".format(name, *interval(ratios)))


if __name__ == "__main__":
    main()
