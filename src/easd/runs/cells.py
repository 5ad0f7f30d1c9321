"""Texts of an evaluation that were recorded token by token, as traces."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from easd.runs.reader import Run
from easd.runs.schema import SAMPLES, STEPS, TOKENS, TOP, VOCABULARY

_CELL = ("system", "task", "seed")


def traces(run: Run) -> list[Run]:
    """The run's traces: itself, or one for each cell of an evaluation with recorded tokens.

    A cell's texts have the numbers of the task's items; its table of steps is empty.
    """
    if run.kind == "trace":
        return [run]
    if run.kind == "bench":
        return []
    found = run.tokens.select(_CELL).group_by(list(_CELL), use_threads=False).aggregate([])
    known = run.vocabulary.group_by(["token", "text"], use_threads=False).aggregate([])
    vocabulary = known.select(VOCABULARY.names).cast(VOCABULARY)
    systems = [system["name"] for system in run.run["systems"]]
    cells = sorted(found.to_pylist(), key=lambda cell: systems.index(cell["system"]))
    return [_cell(run, cell, vocabulary) for cell in cells]


def _cell(run: Run, cell: dict[str, Any], vocabulary: pa.Table) -> Run:
    system = next(s for s in run.run["systems"] if s["name"] == cell["system"])
    overrides = system.get("settings") or {}
    config = {**run.run["config"], **overrides, "rule": system["rule"], "seed": cell["seed"]}
    top_n = system["rule"].get("top_n")
    signals = {"from": "rule" if top_n else "trace", "top_n": top_n or TOP}
    wanted = [pc.field(name).cast(pa.string()) == str(value) for name, value in cell.items()]
    mine = wanted[0] & wanted[1] & wanted[2]
    tokens = run.tokens.filter(mine).select(TOKENS.names)
    prompts = {(i["task"], i["item"]): i["prompt"] for i in run.items.to_pylist()}
    kept = pa.array(sorted(set(tokens["sample"].to_pylist())))
    rows = run.samples.filter(mine & pc.field("index").isin(kept)).to_pylist()
    samples = [
        {
            **{name: row.get(name) for name in SAMPLES.names},
            "sample": row["index"],
            "request": row["index"],
            "prompt": prompts[row["task"], row["item"]],
            "draft_tokens": row["accepted"],
            "target_tokens": row["new_tokens"] - row["accepted"],
        }
        for row in rows
    ]
    return Run(
        folder=run.folder,
        run={**run.run, "kind": "trace", "config": config, "signals": signals, "cell": cell},
        tokens=tokens,
        steps=STEPS.empty_table(),
        samples=pa.Table.from_pylist(samples, SAMPLES),
        vocabulary=vocabulary,
    )
