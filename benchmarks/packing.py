"""One forward over a few rows, with the linear layers plain and packed.

    python benchmarks/packing.py --pair smollm2 --threads 1

Both are timed in turn on the same input; rows x tokens are what a step scores.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from time import perf_counter

import torch
from common import describe, interval, quiet

from easd import load_pair
from easd.engine.models.slots import SlotModel

SHAPES = ((1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 9), (8, 1), (8, 5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(args.threads)
    model = SlotModel(load_pair(args.pair, dtype=torch.float32, device="cpu").target, 8)
    model.prefill(0, [list(range(100, 180))] * 8)
    packed, plain = model._packed, nullcontext()
    print(f"{describe()}, context 80")
    print(f"{'rows x tokens':>14}{'plain ms':>10}{'packed ms':>11}   plain / packed")
    for rows, length in SHAPES:
        tokens = torch.randint(0, 4000, (rows, length))
        seconds: dict[str, list[float]] = {"plain": [], "packed": []}
        for repeat in range(args.repeats + 1):
            for name, context in (("plain", plain), ("packed", packed)):
                model._packed = context
                begin = perf_counter()
                with torch.inference_mode():
                    model.forward(tokens)
                if repeat:
                    seconds[name].append(1000 * (perf_counter() - begin))
        ratios = [a / b for a, b in zip(seconds["plain"], seconds["packed"], strict=True)]
        middle = [interval(seconds[name])[0] for name in seconds]
        print(
            f"{rows:>9} x {length:<2}{middle[0]:>10.1f}{middle[1]:>11.1f}   "
            "{:.2f} [{:.2f}, {:.2f}]".format(*interval(ratios))
        )


if __name__ == "__main__":
    main()
