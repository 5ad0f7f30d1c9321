"""How much of a GPU's memory bandwidth each Triton kernel reaches, beside a device copy.

    python benchmarks/kernels_gpu.py

Device time by CUDA events around replayed CUDA graphs, so launches cost next to nothing; the
inputs of a graph are several times the GPU's cache. Counted is what has to be read once: the
draft's and the target's rows, or the one row of a race.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from easd.core import kernels

VOCAB_SIZE = 152_064
GAMMA = 5
BATCHES = (1, 16, 64)
REPEATS = 30
AIM = 0.7

KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "gate_signals": lambda draft, target, key: kernels.gate_signals(draft, target, 5),
    "sum_of_odds": lambda draft, target, key: kernels.sum_of_odds(draft, target),
    "race": lambda draft, target, key: kernels.race(target, key),
}


def seconds(call: Callable[..., object], inputs: list[tuple[Tensor, ...]]) -> float:
    """Median device time of one call."""
    for each in inputs:
        call(*each)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for each in inputs:
            call(*each)
    times = []
    for _ in range(REPEATS + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(inputs))
    return median(times[1:])


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy on the device."""
    source = torch.ones(2**28, device="cuda")
    copied = torch.empty_like(source)
    return 2 * source.nbytes / seconds(copied.copy_, [(source,)])


def rows(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draft and target as peaked as a language model's, and a key for each position."""
    draft, target = (
        (3 * torch.randn(batch, GAMMA + 1, VOCAB_SIZE, device="cuda")).softmax(-1) for _ in range(2)
    )
    return draft, target, torch.randint(2**62, (batch, GAMMA + 1), device="cuda")


def main() -> None:
    os.environ["EASD_KERNELS"] = "1"
    if not (torch.cuda.is_available() and kernels.usable(torch.empty(0, device="cuda"))):
        raise SystemExit("kernels_gpu.py needs an NVIDIA GPU and triton; nothing was measured")
    device = torch.cuda.get_device_properties(0)
    copy = copy_bandwidth()
    print(f"{device.name}, torch {torch.__version__}, V = {VOCAB_SIZE}, gamma {GAMMA}")
    print(f"device copy: {copy / 1e9:.0f} GB/s read and written; the aim is {AIM:.0%} of it")
    print(f"{'kernel':<14} {'batch':>5} {'us':>9} {'GB/s':>6} {'of copy':>8}")
    for batch in BATCHES:
        one = rows(batch)
        inputs = [one] + [rows(batch) for _ in range(4 * device.L2_cache_size // one[0].nbytes)]
        for name, call in KERNELS.items():
            time = seconds(call, inputs)
            rate = one[1].nbytes * (1 if name == "race" else 2) / time
            row = f"{name:<14} {batch:>5} {1e6 * time:>9.1f} {rate / 1e9:>6.0f} {rate / copy:>8.0%}"
            print(row, "reached" if rate >= AIM * copy else "missed")


if __name__ == "__main__":
    main()
