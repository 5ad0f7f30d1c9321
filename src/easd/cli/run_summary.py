"""Summary of a finished run: accuracies, gates, and texts that failed."""

from __future__ import annotations

from collections import defaultdict

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from easd.errors import ConfigError, EasdError, visible
from easd.runs import Run

_SUMS = ("gate_open", "examined", "new_tokens", "blocks")
_MOST_FAILED = 0.1  # Share of a system's texts in a task beyond which a command fails.


def shown_text(text: str, style: str = "") -> Text:
    """Returns text from outside for a console, with control characters escaped."""
    return Text(visible(text), style)


def summarise(run: Run, console: Console) -> None:
    """Prints accuracies and gates of an evaluation, and whether anything beats the target."""
    if run.samples.num_rows:
        _show_accuracies(run, console)
        _show_verdict(run, console)


def _show_accuracies(run: Run, console: Console) -> None:
    """Prints a run's accuracies and gates, and how many gates never opened."""
    samples = run.samples
    names = ["task", "system"]
    keys = [samples[name].cast(pa.string()) for name in names]
    right = pc.fill_null(samples["correct"], False).cast(pa.int64())
    counted = pa.table([*keys, right, *map(samples.column, _SUMS)], [*names, "right", *_SUMS])
    sums = [("right", "sum"), *((name, "sum") for name in _SUMS), ("right", "count")]
    rows = counted.group_by(names, use_threads=False).aggregate(sums).to_pylist()
    place = {system["name"]: at for at, system in enumerate(run.run["systems"])}
    # On two lines, so that 80 columns suffice: beside a least width Rich cuts off the last column.
    headings = ("right", "texts", "gate\nopen", "tokens\na forward")
    table = Table("task", Column("system", overflow="fold", min_width=24), *headings)
    gated = shut = 0
    for row in sorted(rows, key=lambda row: (row["task"], place[row["system"]])):
        texts, gate, blocks = row["right_count"], row["gate_open_sum"], row["blocks_sum"]
        rate = None if gate is None else gate / max(row["examined_sum"], 1)
        table.add_row(
            shown_text(row["task"]),
            shown_text(row["system"]),
            f"{row['right_sum'] / texts:.1%}",
            f"{texts:,}",
            "" if rate is None else "never" if rate == 0 else f"{rate:.2%}",
            f"{row['new_tokens_sum'] / blocks:.2f}" if blocks else "",
        )
        gated += rate is not None
        shut += rate == 0
    console.print(table)
    if shut:
        line = (
            f"the gate never opens in {shut} of {gated} systems with one, which therefore do "
            "nothing: lower tau_h, or have `easd calibrate --rate 0.02` find one at which it opens"
        )
        console.print(Text(line, "yellow"), soft_wrap=True)


def _show_verdict(run: Run, console: Console) -> None:
    """Prints whether EASD, or any system, beats the target at its best temperature."""
    try:  # Decoding does without the extra that reports need.
        from easd.report.best import answers
        from easd.report.metrics import differences_to_best, drafting, frames
    except ConfigError as missing:
        console.print(shown_text(f"no verdict: {missing}"), soft_wrap=True)
        return
    found = frames(run)
    tables = {"differences_to_best": differences_to_best(found)}
    if not found.is_remote:
        tables["drafting"] = drafting(found)
    for line in answers(found, tables):
        console.print(shown_text(line), soft_wrap=True)


def say_failures(run: Run, console: Console) -> None:
    """Names a text that failed to decode, if any did.

    Raises:
        EasdError: More than a tenth of a system's texts in a task failed.
    """
    names = run.samples.select(["task", "system", "finish_reason", "item", "failure"]).to_pylist()
    cells: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for row in names:
        cells[row["task"], row["system"]].append(row["finish_reason"] == "error")
    worst = max(cells, key=lambda cell: sum(cells[cell]) / len(cells[cell]), default=None)
    if worst is None or not any(cells[worst]):
        return
    failed = sum(map(sum, cells.values()))
    first = next(
        row
        for row in names
        if row["finish_reason"] == "error" and (row["task"], row["system"]) == worst
    )
    line = (
        f"{failed:,} of {len(names):,} texts failed and count as wrong, of {worst[1]} on "
        f"{worst[0]} {sum(cells[worst]):,} of {len(cells[worst]):,}; the first, item "
        f"{first['item']}: {first['failure'].removeprefix('decoding: ')}"
    )
    if sum(cells[worst]) > _MOST_FAILED * len(cells[worst]):
        raise EasdError(f"{line}; more than {_MOST_FAILED:.0%}, so its accuracy says nothing")
    console.print(shown_text(f"warning: {line}", "yellow"), soft_wrap=True)
