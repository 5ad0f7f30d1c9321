"""How much of a GPU's memory bandwidth each Triton kernel reaches, beside a device copy.

    python benchmarks/kernels_gpu.py

Device time by CUDA events around replayed CUDA graphs, so launches cost next to nothing; the
inputs of a graph are several times the GPU's cache. Counted is what has to be read once: the
draft's and the target's rows, or the one row of a race.
"""

from __future__ import annotations

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


def measure() -> dict[str, dict[str, float]]:
    """Each kernel at each batch size: microseconds, GB/s, and the share of a device copy's."""
    if not (torch.cuda.is_available() and kernels.usable(torch.empty(0, device="cuda"))):
        raise SystemExit("kernels_gpu.py needs an NVIDIA GPU and triton; nothing was measured")
    copy = copy_bandwidth()
    found = {"device copy": {"GB/s": copy / 1e9}}
    for batch in BATCHES:
        one = rows(batch)
        size = torch.cuda.get_device_properties(0).L2_cache_size
        inputs = [one] + [rows(batch) for _ in range(4 * size // one[0].nbytes)]
        for name, call in KERNELS.items():
            time = seconds(call, inputs)
            rate = one[1].nbytes * (1 if name == "race" else 2) / time
            found[f"{name}, {batch} at once"] = {
                "us": 1e6 * time,
                "GB/s": rate / 1e9,
                "of the copy": rate / copy,
            }
    return found


def main() -> None:
    found = measure()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, V = {VOCAB_SIZE}")
    print(f"gamma {GAMMA}; the aim is {AIM:.0%} of the copy")
    for name, told in found.items():
        print(f"{name:<24}", "  ".join(f"{key} {value:.3g}" for key, value in told.items()))


if __name__ == "__main__":
    main()
