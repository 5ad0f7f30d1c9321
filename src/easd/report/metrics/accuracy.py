"""How often each system is right, and what of its run is there."""

from __future__ import annotations

import pandas as pd

from easd.report.metrics.frames import Frames, cells
from easd.report.metrics.intervals import share_of


def accuracy(frames: Frames) -> pd.DataFrame:
    """Accuracy of every system on every task, and pooled.

    Columns: task, system, samples, problems, accuracy with its interval, failed, cut_off,
    new_tokens (mean length of a text).
    """
    return pd.DataFrame(
        {
            "task": task,
            "system": system,
            "samples": int(cell["samples"].sum()),
            "problems": len(cell),
            **share_of("accuracy", cell["correct"], cell["samples"]),
            "failed": int(cell["failed"].sum()),
            "cut_off": cell["cut_off"].sum() / cell["samples"].sum(),
            "new_tokens": cell["new_tokens"].sum() / cell["samples"].sum(),
        }
        for task, system, cell in cells(frames.by_problem)
    )


def coverage(frames: Frames) -> pd.DataFrame:
    """What was asked, what is there, and what is compared, for every system and task.

    Columns: task, system, wanted, samples, missing, failed, paired (samples that differences to
    other systems are taken on; 0 for a system left out of them).
    """
    seeds = len(frames.run.get("config", {}).get("seeds") or [0])
    keys = ["task", "system"]
    samples = frames.samples.groupby(keys, observed=False)
    paired = frames.common.groupby(keys, observed=False).size()
    found = samples["failed"].agg(["size", "sum"]).reset_index()
    found = found.rename(columns={"size": "samples", "sum": "failed"})
    found["wanted"] = [seeds * frames.run["tasks"][task]["items"] for task in found["task"]]
    found["missing"] = found["wanted"] - found["samples"]
    found["failed"] = found["failed"].astype(int)
    found["paired"] = paired.to_numpy()
    return found[[*keys, "wanted", "samples", "missing", "failed", "paired"]]
