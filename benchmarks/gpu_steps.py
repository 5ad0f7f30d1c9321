"""Where the time of a step goes on a GPU, and how often its host waits for the GPU."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from easd import EASD, Pair, Speculative
from easd.core.rules import TargetOnly
from easd.engine.batch import Clock
from easd.engine.engine import Engine
from easd.engine.generate import make_engine, make_requests
from easd.engine.settings import Settings

WARM, MEASURED = 10, 10
# What each is measured with: CUDA graphs, and fused kernels between a layer's products.
WAYS = {
    "fused": {"EASD_GRAPHS": "1", "EASD_FUSED": "1"},
    "graphs": {"EASD_GRAPHS": "1", "EASD_FUSED": "0"},
    "plain": {"EASD_GRAPHS": "0", "EASD_FUSED": "0"},
}


def measure(pair: Pair, prompts: list[list[int]], gamma: int, tau_h: float) -> dict[str, Any]:
    """Milliseconds of a step by part, and its waits for the GPU, each way.

    Only speculation is measured plain. The log has the profile of a few steps of speculation.
    """
    systems = {
        "target": (TargetOnly(), None),
        "speculative": (Speculative(), None),
        "easd": (EASD(tau_h=tau_h), "published"),
        "easd-maximal": (EASD(tau_h=tau_h), "maximal"),
    }
    found = {}
    for batch in (1, len(prompts)):
        for way, switches in WAYS.items():
            os.environ |= switches
            for name in ("speculative",) if way == "plain" else systems:
                rule, coupling = systems[name]
                settings = Settings(
                    rule=rule, coupling=coupling, gamma=gamma, max_new_tokens=256, batch_size=batch
                )
                engine = make_engine(pair, settings, num_rows=batch)
                for request in make_requests(pair, prompts[:batch], settings):
                    engine.submit(request)
                found[f"{name}, {batch} at once, {way}"] = told(engine)
                if batch == 1 and way == "fused" and name == "speculative":
                    print(profiled(engine))
    return found


def told(engine: Engine) -> dict[str, Any]:
    for _ in range(WARM):
        engine.step()
    found: dict[str, Any] = {"ms": 1e3 * median(seconds(engine))}
    with waiting_laps():
        parts: dict[str, list[float]] = {}
        for _ in range(MEASURED):
            for part, each in engine.step()[0].seconds.items():  # type: ignore[union-attr]
                parts.setdefault(part, []).append(each)
    found |= {part: 1e3 * median(times) for part, times in parts.items() if part != "prefill"}
    found["waits"] = waits(engine)
    return found


def profiled(engine: Engine, steps: int = 5) -> str:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        for _ in range(steps):
            engine.step()
    averages = found.key_averages()
    orders = ("self_cpu_time_total", "self_cuda_time_total")
    return "\n".join(averages.table(sort_by=order, row_limit=30) for order in orders)


def seconds(engine: Engine) -> Iterator[float]:
    synchronize()
    for _ in range(MEASURED):
        begin = perf_counter()
        engine.step()
        yield perf_counter() - begin


def waits(engine: Engine) -> float | None:
    """Operations of a step that wait for the GPU, by torch's own count."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(4):
                engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(each.message) for each in caught) / 4


@contextmanager
def waiting_laps() -> Iterator[None]:
    """Has the clock of a step wait for the GPU at the end of each part."""
    lap = Clock.lap

    def wait(self: Clock, part: str) -> None:
        synchronize()
        lap(self, part)

    Clock.lap = wait  # type: ignore[method-assign]
    try:
        yield
    finally:
        Clock.lap = lap  # type: ignore[method-assign]


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
