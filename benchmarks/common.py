"""What the benchmarks share: prompts, intervals, and a line about the machine."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import torch
import transformers

_LINES = Path(__file__).with_name("prompts.jsonl").read_text(encoding="utf-8").splitlines()
PROMPTS = tuple(json.loads(line)["problem"] for line in _LINES)


def interval(values: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Returns the median and its 95 % bootstrap interval."""
    found = np.asarray(values)
    draws = np.random.default_rng(seed).choice(found, (4000, len(found)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(np.median(found)), float(low), float(high)


def quiet() -> None:
    """Turns off transformers' loading bars and advice."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def describe() -> str:
    """Returns one line about the machine and the libraries."""
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
