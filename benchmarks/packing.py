"""One forward over a few rows: the linear layers plain, packed, and packed with rows of zeros.

    python benchmarks/packing.py --pair smollm2 --threads 1

All are timed in turn on the same input; rows x tokens are what a step scores. The engine adds zeros
to one or two rows, with AVX-512.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from time import perf_counter

import torch
from common import describe, interval, quiet

from easd import load_pair
from easd.engine.models import layout
from easd.engine.models.packing import spare_rows
from easd.engine.models.slots import SlotModel

SHAPES = ((1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 9), (8, 1), (8, 5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(args.threads)
    pair = load_pair(args.pair, dtype=getattr(torch, args.dtype), device="cpu")
    model = SlotModel(pair.target, 8)
    model.prefill(0, [list(range(100, 180))] * 8)
    ways = {
        "plain": (nullcontext(), lambda count: 0),
        "packed": (model._packed, lambda count: 0),
        "zeros": (model._packed, spare_rows),
    }
    print(f"{describe()}, {args.dtype}, context 80")
    print(f"{'rows x tokens':>14}{'plain ms':>10}   plain / packed      plain / with zeros")
    for rows, length in SHAPES:
        tokens = torch.randint(0, 4000, (rows, length))
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(args.repeats + 1):
            for name, (model._packed, layout.spare_rows) in ways.items():
                begin = perf_counter()
                with torch.inference_mode():
                    model.forward(tokens)
                if repeat:
                    seconds[name].append(1000 * (perf_counter() - begin))
        print(f"{rows:>9} x {length:<2}{interval(seconds['plain'])[0]:>10.1f}", end="")
        for name in ("packed", "zeros"):
            ratios = [a / b for a, b in zip(seconds["plain"], seconds[name], strict=True)]
            print("   {:.2f} [{:.2f}, {:.2f}]".format(*interval(ratios)), end="")
        print()


if __name__ == "__main__":
    main()
