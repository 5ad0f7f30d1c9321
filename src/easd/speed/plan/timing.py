"""What calls take here, and lines through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer

_LONGEST = 0.2  # seconds spent on a timing


def seconds_of(call: Callable[[], Any]) -> float:
    """What a call takes, warmed up and waited for."""
    call()
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return undisturbed(timer.blocked_autorange(min_run_time=_LONGEST).times)


def undisturbed(seconds: Sequence[float]) -> float:
    """The lower quartile: the rest may say more of the machine's other work than of ours."""
    return float(np.quantile(seconds, 0.25))


def fixed_and_slope(amounts: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """What is paid once, and for each of `amounts`: least squares, neither below zero."""
    around = np.asarray(amounts) - np.mean(amounts)
    slope = max(0.0, float(around @ np.asarray(seconds) / (around @ around)))
    fixed = float(np.mean(seconds)) - slope * float(np.mean(amounts))
    if fixed >= 0:
        return fixed, slope
    return 0.0, max(0.0, float(np.dot(amounts, seconds) / np.dot(amounts, amounts)))
