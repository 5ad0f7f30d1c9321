"""Time per token at a long context over a short one, and the memory beside the models.

    python benchmarks/context.py --pair smollm2 --short 200 --long 2000

Steps of both contexts alternate. Acceptance differs from context to context, so the time of a
step is compared, which at equal acceptance is the time of a token.
"""

from __future__ import annotations

import argparse
import resource
from statistics import median

import torch
from common import chat_ids, describe, interval, load_prompts, quiet

from easd import EASD, Settings, load_pair
from easd.engine.generate import make_engine, make_requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--short", type=int, default=200)
    parser.add_argument("--long", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--gamma", type=int, default=4)
    args = parser.parse_args()
    quiet()
    pair = load_pair(args.pair, dtype=getattr(torch, args.dtype))
    pair.target.generation_config.eos_token_id = None
    pair.tokenizer.eos_token = None
    loaded = peak_mib()
    weights = sum(tensor_bytes(m) for m in (pair.target, pair.draft)) / 2**20
    text = [token for ids in chat_ids(pair, load_prompts(None, 80)) for token in ids]
    settings = Settings(
        rule=EASD(coupling="maximal"),
        gamma=args.gamma,
        max_new_tokens=(args.steps + 2) * (args.gamma + 1),
    )
    engines = {}
    for length in (args.short, args.long):
        engine = make_engine(pair, settings, num_rows=1)
        engine.submit(*make_requests(pair, [text[:length]], settings))
        engine.step()  # prefill
        engines[length] = engine
    seconds = {length: [] for length in engines}
    for _ in range(args.steps):
        for length, engine in engines.items():
            (record,) = engine.step()
            seconds[length].append(sum(record.seconds.values()))
    print(f"{describe()}, {args.dtype}, gamma {args.gamma}")
    for length, found in seconds.items():
        print(f"context {length}: {1000 * median(found):.1f} ms a step")
    ratios = [b / a for a, b in zip(seconds[args.short], seconds[args.long], strict=True)]
    print("long over short: {:.3f} [{:.3f}, {:.3f}]".format(*interval(ratios)))
    print(
        f"weights {weights:.0f} MiB, peak after loading {loaded:.0f} MiB, "
        f"peak at the end {peak_mib():.0f} MiB"
    )


def tensor_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's own tensors, each counted once."""
    found = {
        t.data_ptr(): t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]
    }
    return sum(found.values())


def peak_mib() -> float:
    """The process's peak resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
