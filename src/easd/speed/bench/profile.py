"""Which operations a system spends its time in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from easd.engine.pair import Pair
from easd.speed.bench.systems import Load, System, decode_once

_ROWS = 15


def profiled(system: System, pair: Pair, prompts: Sequence[Sequence[int]], load: Load) -> str:
    """Torch's table of the operations that took longest in one run, by their own time."""
    activities = [ProfilerActivity.CPU]
    order = "self_cpu_time_total"
    if pair.target.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        order = "self_cuda_time_total"
    decode_once(system, pair, prompts, load, 0)
    with profile(activities=activities) as found, torch.inference_mode():
        decode_once(system, pair, prompts, load, 1)
    table = found.key_averages().table(
        sort_by=order, row_limit=_ROWS, max_name_column_width=40, top_level_events_only=False
    )
    return f"{system.name}, {load.batch} at once\n{table}"
