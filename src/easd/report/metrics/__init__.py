"""Summary tables of an evaluation: functions from `Frames` to data frames.

    from easd.report.metrics import accuracy
    from easd.report.metrics import frames
    from easd.runs import open_run

    print(accuracy(frames(open_run("my-run"))))

Each function lists its columns; `COLUMNS` has their headings, units and definitions. A value's 95 %
interval is in `NAME_low` and `NAME_high`. With several tasks there are also rows of the task
`all tasks`, where every sample has the same weight.
"""

from easd.errors import ConfigError

try:
    import pandas  # noqa: F401
except ImportError as error:
    raise ConfigError(
        f"metrics need {error.name}, which is not installed; pip install 'easd[study]'"
    ) from None

from easd.report.metrics.accuracy import accuracy, coverage, differences, flips
from easd.report.metrics.best import differences_to_best
from easd.report.metrics.columns import COLUMNS, Column
from easd.report.metrics.frames import POOLED, Frames, frames
from easd.report.metrics.gate import firing, penalised_samples, sensitivity, tradeoffs
from easd.report.metrics.settings import shared_settings, system_settings, task_settings
from easd.report.metrics.speed import drafting, expected_improvement, serving, speed, work
from easd.report.metrics.traces import (
    correctness_by_entropy,
    entropy_correlation,
    entropy_histogram,
    entropy_summary,
    joint_conditions,
    overlap_counts,
    refused_tokens,
    replacements,
)

__all__ = [
    "COLUMNS",
    "POOLED",
    "Column",
    "Frames",
    "accuracy",
    "correctness_by_entropy",
    "coverage",
    "differences",
    "differences_to_best",
    "drafting",
    "entropy_correlation",
    "entropy_histogram",
    "entropy_summary",
    "expected_improvement",
    "firing",
    "flips",
    "frames",
    "joint_conditions",
    "overlap_counts",
    "penalised_samples",
    "refused_tokens",
    "replacements",
    "sensitivity",
    "serving",
    "shared_settings",
    "speed",
    "system_settings",
    "task_settings",
    "tradeoffs",
    "work",
]
