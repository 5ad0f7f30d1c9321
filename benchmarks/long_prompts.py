"""Longest gap of a stream beside long prompts, with and without chunks, and how fast they are read.

python benchmarks/long_prompts.py [--pair smollm2] [--loads 1x4000,1x8000,7x2000]
    [--budgets 256,whole]

One text is being decoded while others wait behind long prompts, in one thread and in processor
time, so that other work on the machine does not count. `whole` caches all prompts at once.
"""

import argparse
import time

import numpy as np
import torch
from common import describe, quiet

from easd.engine.batch import StepRecord
from easd.engine.generate import make_engine
from easd.engine.models.slots import SlotModel
from easd.engine.pair import Pair
from easd.engine.request import Request
from easd.engine.settings import Settings
from easd.pairs.loading import load_pair


def measure(pair: Pair, count: int, length: int, budget: int | None) -> tuple[float, float, float]:
    """Median gap before and longest gap beside the prompts, and prompt tokens a second."""
    engine = make_engine(pair, Settings(), num_rows=count + 1)
    prompts = np.random.default_rng(0).integers(100, 5000, (count, length)).tolist()
    stream = Request(prompt=(7, 8, 9), max_new_tokens=4000)
    engine.submit(stream)
    alone = [_step(engine, budget)[0] for _ in range(12)]
    waiting = set(range(1, count + 1))
    for number, prompt in zip(sorted(waiting), prompts, strict=True):
        engine.submit(Request(prompt=tuple(prompt), number=number, max_new_tokens=1))
    beside = []
    while waiting:
        seconds, ended = _step(engine, budget)
        beside.append(seconds)
        assert 0 not in ended, "the stream ended before the prompts were read"
        waiting -= ended
    return float(np.median(alone[2:])), max(beside), count * length / sum(beside)


def _step(engine, budget: int | None) -> tuple[float, set[int]]:
    """A step's time, which is a gap of the stream, and the numbers of the texts that ended."""
    begin = time.process_time()
    ended = {
        row.request.number
        for record in engine.step(budget)
        if isinstance(record, StepRecord)
        for row in record.rows
        if row.finished
    }
    return time.process_time() - begin, ended


@torch.inference_mode()
def chunk_seconds(pair: Pair, context: int, tokens: int) -> float:
    """Time of a chunk at the end of a prompt, in both models: the median of five."""
    slots = [SlotModel(model, 1) for model in (pair.target, pair.draft) if model is not None]
    for model in slots:
        model.cache.reserve(context)
    found = []
    for _ in range(6):
        begin = time.process_time()
        for model in slots:
            model.lengths[0] = context - tokens
            model.extend(0, [[100] * tokens])
        found.append(time.process_time() - begin)
    return float(np.median(found[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--loads", default="1x4000,1x8000,7x2000")
    parser.add_argument("--budgets", default="256,whole")
    arguments = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    pair = load_pair(arguments.pair)
    print(f"{arguments.pair}, {describe()}", flush=True)
    for load in arguments.loads.split(","):
        count, length = map(int, load.split("x"))
        for budget in arguments.budgets.split(","):
            most = None if budget == "whole" else int(budget)
            alone, beside, speed = measure(pair, count, length, most)
            line = f"{load}, {budget}: longest gap {beside:.2f} s ({alone:.2f} s without prompts)"
            if most is not None:
                chunk = chunk_seconds(pair, length, most)
                line += f", {beside / chunk:.2f} x the {chunk:.2f} s of a chunk"
            print(f"{line}; {speed:.0f} prompt tokens/s", flush=True)


if __name__ == "__main__":
    main()
