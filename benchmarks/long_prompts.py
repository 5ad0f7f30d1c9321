"""Longest gap of a stream beside long prompts of `easd serve`, and how fast these are read.

python benchmarks/long_prompts.py [--pair smollm2] [--loads 1x4000,1x8000,7x2000] [--src SRC]

A client streams a text while others ask for one token each behind a long prompt. The server runs in
a process of its own with one thread. `--src` serves another checkout's package, to compare with.
"""

import argparse
import asyncio
import os
import time

import numpy as np
import torch
from common import describe, quiet
from openai import AsyncOpenAI
from server_load import serving

from easd.engine.models.slots import SlotModel
from easd.pairs.loading import load_pair
from easd.serve.scheduler import PREFILL_TOKENS

_QUIET_SECONDS = 4.0


class Stream:
    """A text that never ends, and when each piece of it came."""

    def __init__(self, client: AsyncOpenAI, pair: str, end: int) -> None:
        self._client = client
        self._body = {
            "model": pair,
            "prompt": [7, 8, 9],
            "max_tokens": 4000,
            "seed": 0,
            "logit_bias": {str(end): -100},
        }
        self.times: list[float] = []

    async def run(self) -> None:
        """Streams until cancelled."""
        stream = await self._client.completions.create(**self._body, stream=True)
        async for _ in stream:
            self.times.append(time.perf_counter())

    def longest_gap(self, begin: float, end: float) -> float:
        """The longest time without a piece between two moments, in seconds."""
        inside = [moment for moment in self.times if begin < moment < end]
        return float(np.diff([begin, *inside, end]).max())


async def measure(url: str, pair: str, end: int, load: str) -> tuple[float, float, float]:
    """Longest gap without and with a load, and prompt tokens a second."""
    count, length = map(int, load.split("x"))
    prompts = np.random.default_rng(0).integers(100, 5000, (count, length)).tolist()
    async with AsyncOpenAI(base_url=url, api_key="none", timeout=3600) as client:
        stream = Stream(client, pair, end)
        streaming = asyncio.create_task(stream.run())
        while len(stream.times) < 20:
            await asyncio.sleep(0.05)
        begin = time.perf_counter()
        await asyncio.sleep(_QUIET_SECONDS)
        loaded = time.perf_counter()
        await asyncio.gather(
            *(
                client.completions.create(model=pair, prompt=prompt, max_tokens=1)
                for prompt in prompts
            )
        )
        done = time.perf_counter()
        assert not streaming.done(), "the stream ended before the prompts were read"
        streaming.cancel()
    gaps = stream.longest_gap(begin, loaded), stream.longest_gap(loaded, done)
    return *gaps, count * length / (done - loaded)


@torch.inference_mode()
def chunk_seconds(pair: str, context: int) -> float:
    """Time of a chunk at the end of a prompt, in both models: the median of five."""
    models = load_pair(pair)
    slots = [SlotModel(model, 1) for model in (models.target, models.draft) if model is not None]
    ids = torch.full((1, PREFILL_TOKENS), 100)
    for model in slots:
        model.cache.reserve(context)
        model.lengths[0] = context - PREFILL_TOKENS
    found = []
    for _ in range(6):
        begin = time.perf_counter()
        for model in slots:
            model.forward(ids, keep=1)
        found.append(time.perf_counter() - begin)
    return float(np.median(found[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--loads", default="1x4000,1x8000,7x2000")
    parser.add_argument("--src", help="folder with another easd package to serve")
    arguments = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    if arguments.src:
        os.environ["PYTHONPATH"] = arguments.src
    (end,) = load_pair(arguments.pair).end_tokens
    print(f"{arguments.pair}, {describe()}")
    for load in arguments.loads.split(","):
        count, length = map(int, load.split("x"))
        with serving(arguments.pair, count + 1) as (_, url):
            alone, beside, speed = asyncio.run(measure(url, arguments.pair, end, load))
        chunk = chunk_seconds(arguments.pair, length)
        print(
            f"{load}: longest gap {beside:.2f} s, {alone:.2f} s without the prompts; a chunk of "
            f"{PREFILL_TOKENS} tokens takes {chunk:.2f} s; {speed:.0f} prompt tokens/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
