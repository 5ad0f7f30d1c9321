"""Tables of an evaluation as data frames, and values with their intervals as columns of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from easd.errors import ConfigError, InputError
from easd.runs import Run
from easd.stats import Estimate, ratio, share

Tables = dict[str, pd.DataFrame]
"""The tables of a report by name."""

POOLED = "all tasks"
BASELINES = ("target", "speculative")

_HEAVY = ("text", "token_ids", "answer")
_NOT_SUMMED = ("seed", "index", "seconds")
_PARTS = ("draft", "target", "verify")
_LEAST_COMPLETE = 0.5


@dataclass(frozen=True)
class Frames:
    """The tables of an evaluation that metrics are computed from; see `frames`.

    Attributes:
        run: the content of run.json.
        texts: texts, answers and token ids, with the rows of `samples`.
        chunks: times and forwards of texts decoded together.
        tokens: rows of traced items.
        items: prompts and gold answers.
        systems, tasks: names in the order of run.json.
        baseline: the system that others are compared with.
    """

    run: dict[str, Any]
    samples: pd.DataFrame
    texts: pa.Table
    chunks: pd.DataFrame
    tokens: pa.Table
    items: pd.DataFrame
    systems: list[str]
    tasks: list[str]
    baseline: str

    @cached_property
    def by_problem(self) -> pd.DataFrame:
        """Counts summed over the seeds of each problem: one row per task, system and problem."""
        keys = ["task", "system", "problem"]
        samples = self.samples.assign(samples=1).drop(columns=[*_NOT_SUMMED])
        groups = samples.groupby(keys, observed=True, sort=True)
        return groups.sum(numeric_only=True, min_count=1).reset_index()

    @cached_property
    def common(self) -> pd.DataFrame:
        """Samples that all systems of a task have, on which differences are computed.

        A system with fewer than half the samples of the most complete one is left out, since it
        would shrink the comparison of all others.
        """
        kept = []
        for _, rows in self.samples.groupby("task", observed=True, sort=True):
            size = rows.groupby("system", observed=True).size()
            full = size.index[size >= _LEAST_COMPLETE * size.max()]
            rows = rows[rows["system"].isin(full)]
            seen = rows.groupby(["problem", "seed"])["system"].transform("size")
            kept.append(rows[seen == len(full)])
        return pd.concat(kept) if kept else self.samples

    def rule(self, system: str) -> dict[str, Any]:
        """A system's rule with its fields, as run.json has it."""
        return dict(self.description(system).get("rule") or {})

    def description(self, system: str) -> dict[str, Any]:
        """A system as run.json has it."""
        return next((s for s in self.run["systems"] if s["name"] == system), {})

    def setting(self, system: str, name: str) -> Any:
        """A setting of a system, None if unknown."""
        own = self.description(system).get("settings") or {}
        return own.get(name, self.run.get("config", {}).get(name))

    @property
    def is_remote(self) -> bool:
        """Whether servers decoded, which report neither tokens nor forwards."""
        return any(system.get("kind") == "endpoint" for system in self.run["systems"])

    def kind(self, system: str) -> str:
        """`rsd` for reward-guided decoding, else the name of the system's rule."""
        if self.description(system).get("kind") == "rsd":
            return "rsd"
        return str(self.rule(system).get("name", system))

    @property
    def focus(self) -> str | None:
        """The system that close-ups show: EASD, else the first other one that penalised."""
        others = [name for name in self.systems if name != self.baseline]
        plain = [s for s in others if self.kind(s) == "easd"]
        penalised = self.samples.groupby("system", observed=False)["penalised"].sum()
        for candidates in (plain, others):
            firing = [s for s in candidates if penalised.get(s, 0) > 0]
            if firing or (candidates is plain and plain):
                return (firing or plain)[0]
        return others[0] if others else None

    def first_of(self, kind: str) -> str | None:
        """The first system of that kind."""
        return next((system for system in self.systems if self.kind(system) == kind), None)

    @property
    def present_tasks(self) -> list[str]:
        """Tasks that have samples."""
        found = set(self.samples["task"].unique())
        return [task for task in self.tasks if task in found]


def frames(run: Run, baseline: str | None = None) -> Frames:
    """Reads a run's tables into data frames.

    Args:
        run: an evaluation, as `easd.runs.open_run` returns it.
        baseline: by default target-only, else speculative sampling, else the first system.

    Raises:
        ConfigError: The baseline is no system of the run.
    """
    systems = [str(system["name"]) for system in run.run["systems"]]
    tasks = [str(task) for task in run.run["tasks"]]
    return Frames(
        run=run.run,
        samples=_samples(run.samples, systems, tasks),
        texts=run.samples.select(list(_HEAVY)).combine_chunks(),
        chunks=_chunks(run.chunks, systems, tasks),
        tokens=_plain(run.tokens),
        items=_plain(run.items).to_pandas(),
        systems=systems,
        tasks=tasks,
        baseline=_baseline(baseline, systems),
    )


def by_task_and_system(
    frame: pd.DataFrame, *, pooled: bool = True
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Task, system and rows of each group; then each system over all tasks, if there are more."""
    tasks = 0
    for task, rows in frame.groupby("task", observed=True, sort=True):
        tasks += 1
        for system, group in rows.groupby("system", observed=True, sort=True):
            yield str(task), str(system), group
    if pooled and tasks > 1:
        for system, group in frame.groupby("system", observed=True, sort=True):
            yield POOLED, str(system), group


def narrowed(tokens: pa.Table, outcomes: tuple[str, ...], columns: list[str]) -> pa.Table:
    """The columns, in rows with one of these outcomes."""
    return tokens.filter(pc.field("outcome").isin(outcomes)).select(columns)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as mappings."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def ordered(values: pd.Series, names: list[str]) -> pd.Series:
    """Names as a category in the order of the run."""
    return pd.Series(pd.Categorical(values, categories=names), index=values.index)


def _samples(table: pa.Table, systems: list[str], tasks: list[str]) -> pd.DataFrame:
    light = [name for name in table.column_names if name not in _HEAVY]
    frame = _plain(table.select(light)).to_pandas()
    frame["system"] = ordered(frame["system"], systems)
    frame["task"] = ordered(frame["task"], tasks)
    # A text that could not be graded counts as wrong.
    frame["failed"] = frame["failure"].notna() | frame["correct"].isna()
    frame["correct"] = frame["correct"].eq(True)
    frame["cut_off"] = frame["finish_reason"] == "length"
    task = frame["task"].cat.codes.to_numpy().astype(np.int64)
    item = pd.factorize(frame["item"])[0]
    frame["problem"] = task * (item.max() + 1 if len(item) else 1) + item
    return frame


def _chunks(table: pa.Table, systems: list[str], tasks: list[str]) -> pd.DataFrame:
    frame = _plain(table).to_pandas()
    frame["system"] = ordered(frame["system"], systems)
    frame["task"] = ordered(frame["task"], tasks)
    known = sum(frame[f"{part}_seconds"] for part in _PARTS)
    # Processing prompts, committing tokens, and time that belongs to no part.
    frame["other_seconds"] = (frame["seconds"] - known).clip(lower=0.0)
    return frame


def _plain(table: pa.Table) -> pa.Table:
    """Dictionary columns as strings, since parts of a run need not share a dictionary."""
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table[field.name].cast(pa.string()))
    return table


def _baseline(wanted: str | None, systems: list[str]) -> str:
    if wanted is None:
        return next((name for name in BASELINES if name in systems), systems[0])
    if wanted not in systems:
        raise ConfigError(
            f"baseline {wanted!r} is not a system of this run; choose one of {', '.join(systems)}"
        )
    return wanted


Interval = dict[str, float]


def columns_of(name: str, estimate: Estimate) -> Interval:
    """`name`, `name_low` and `name_high`."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _estimated(
    estimate: Callable[[np.ndarray, np.ndarray], Estimate],
    name: str,
    above: pd.Series,
    below: pd.Series,
) -> Interval:
    top = above.to_numpy(dtype=np.float64, na_value=np.nan)
    bottom = below.to_numpy(dtype=np.float64, na_value=np.nan)
    known = ~(np.isnan(top) | np.isnan(bottom))
    top, bottom = top[known], bottom[known]
    if not bottom.sum():
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), math.nan)
    try:
        return columns_of(name, estimate(top, bottom))
    except InputError:  # a single problem allows no interval
        value = float(top.sum() / bottom.sum())
        return {name: value, f"{name}_low": math.nan, f"{name}_high": math.nan}


share_of = partial(_estimated, share)
"""A share of positions or samples: the columns of its name, from counts by problem."""

ratio_of = partial(_estimated, ratio)
"""A ratio of sums: the columns of its name, from sums by problem."""
