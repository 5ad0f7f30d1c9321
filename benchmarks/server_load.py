"""Time to first token and tokens a second of `easd serve`, and its memory over many requests.

python benchmarks/server_load.py [--pair lab-c] [--concurrent 1,8,64] [--requests 128]
    [--memory-requests 2000]

The server runs in a process of its own and decodes as many texts at once as there are clients, at
most 64. Every text is also compared with what its request gets from an idle server.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import psutil
from common import PROMPTS, describe
from openai import AsyncOpenAI, OpenAI

from easd.pairs import lab


@contextmanager
def serving(pair: str, batch: int):
    """A server's process and its address."""
    options = ["--pair", pair, "--port", "0", "--max-batch", str(batch)]
    process = subprocess.Popen(
        [sys.executable, "-m", "easd", "serve", *options],
        stderr=subprocess.PIPE,
        text=True,
        env={"OMP_NUM_THREADS": "1", **os.environ},
    )
    try:
        yield process, process.stderr.readline().split()[-1] + "/v1"
    finally:
        process.terminate()
        process.wait()


async def one(client: AsyncOpenAI, body: dict, first: list[float]) -> str:
    """A streamed text; notes the time to its first piece."""
    begun, text = time.perf_counter(), ""
    stream = await client.chat.completions.create(**body, stream=True)
    async for chunk in stream:
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece and not text:
            first.append(time.perf_counter() - begun)
        text += piece or ""
    return text


async def load(url: str, bodies: list[dict], concurrent: int) -> tuple[list[str], list[float]]:
    """Asks for all texts, so many at a time."""
    first: list[float] = []
    gate = asyncio.Semaphore(concurrent)
    async with AsyncOpenAI(base_url=url, api_key="none", timeout=600) as client:

        async def one_of_so_many(body: dict) -> str:
            async with gate:
                return await one(client, body, first)

        return await asyncio.gather(*map(one_of_so_many, bodies)), first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pair", default="lab-c")
    parser.add_argument("--concurrent", default="1,8,64")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--memory-requests", type=int, default=2000)
    arguments = parser.parse_args()
    prompts = list(PROMPTS)
    if arguments.pair in lab.RECIPES:
        prompts = [problem.prompt for problem in lab.problems(arguments.pair, 64, seed=0)]

    def bodies(count: int) -> list[dict]:
        return [
            {
                "model": arguments.pair,
                "messages": [{"role": "user", "content": prompts[number % len(prompts)]}],
                "seed": number,
                "max_tokens": arguments.max_tokens,
            }
            for number in range(count)
        ]

    print(f"{arguments.pair}, {arguments.requests} requests, {describe()}")
    alone: list[str] = []
    for concurrent in map(int, arguments.concurrent.split(",")):
        asked = bodies(arguments.requests)
        with serving(arguments.pair, min(concurrent, 64)) as (_, url):
            asyncio.run(load(url, asked[:4], 1))
            begun = time.perf_counter()
            texts, first = asyncio.run(load(url, asked, concurrent))
            seconds = time.perf_counter() - begun
            with OpenAI(base_url=url, api_key="none") as client:
                alone = alone or [
                    client.chat.completions.create(**body).choices[0].message.content or ""
                    for body in asked
                ]
                tokens = sum(
                    client.chat.completions.create(**body).usage.completion_tokens for body in asked
                )
        half, most = np.percentile(first, [50, 99]) * 1000
        same = sum(text == own for text, own in zip(texts, alone, strict=True))
        print(
            f"{concurrent:3d} at once: first token p50 {half:.0f} ms, p99 {most:.0f} ms; "
            f"{tokens / seconds:.0f} tok/s; {same} of {len(texts)} as alone"
        )
    if not arguments.memory_requests:
        return
    with serving(arguments.pair, 64) as (process, url):
        told = psutil.Process(process.pid)
        for part in range(10):
            asyncio.run(load(url, bodies(arguments.memory_requests // 10), 64))
            asked = (part + 1) * (arguments.memory_requests // 10)
            print(f"after {asked} requests: {told.memory_info().rss / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
