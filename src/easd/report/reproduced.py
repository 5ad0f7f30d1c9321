"""A preset's results beside what was reported, and what a run of this size can show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from easd.presets import Preset
from easd.report import metrics
from easd.report.metrics import Frames, frames
from easd.report.metrics.accuracy import LOST
from easd.report.metrics.frames import POOLED, records
from easd.report.metrics.traces import quoted
from easd.report.page import (
    Section,
    Table,
    counted,
    make_table,
    number,
    p_words,
    rate,
    tables_by_task,
    with_interval,
)
from easd.report.record import flipped
from easd.runs import Run
from easd.stats import Spread, paired_difference

_EASD = "easd"
_POWER = 0.8
_WORTH = 0.01  # A difference that would matter, where none was reported.
_SHOWN = 3  # Failures each way.

_ACCURACY = "system accuracy reported_accuracy difference p_holm detectable penalty_rate"
_SPEED = (
    "system tokens_per_second reported_tokens_per_second improvement reported_improvement "
    "draft_ms target_ms verify_ms other_ms request_p50 penalty_rate"
)
_THRESHOLDS = "tau_h tau_o penalty_rate accuracy difference p_holm detectable"
_REFUSED = "item at refused replacement role draft_entropy target_entropy overlap"


def reproduced(run: Run, preset: Preset) -> Section:
    """Returns the results of a run, which may be unfinished, as the preset shows them."""
    found = frames(run)
    parts: Mapping[str, Callable[[Frames, Preset], Section]] = {
        "accuracy": _accuracy,
        "speed": _speed,
        "thresholds": _thresholds,
        "failures": _failures,
    }
    return parts[preset.shows](found, preset)


def _accuracy(found: Frames, preset: Preset) -> Section:
    table = _with_reported(preset, _accuracies(found))
    sentences = [*_claims(found, preset), *_cut_off(found, table), *_elsewhere(found, preset)]
    return _section(preset, sentences, tables_by_task(table, _ACCURACY))


def _accuracies(found: Frames) -> pd.DataFrame:
    """Accuracies, shares of texts cut off, differences to the target, and penalty rates."""
    keys = ["task", "system"]
    table = metrics.accuracy(found)[[*keys, "samples", "accuracy", "cut_off"]]
    compared = metrics.differences(found)
    if len(compared):
        ends = ("difference", "difference_low", "difference_high", "p_holm", "detectable")
        table = table.merge(compared[[*keys, *ends]], on=keys, how="left")
    return _with_penalties(found, table)


def _with_penalties(found: Frames, table: pd.DataFrame) -> pd.DataFrame:
    fired = metrics.serving(found) if found.is_remote else metrics.firing(found)
    if "penalty_rate" not in fired:
        return table
    keys = ["task", "system"]
    return table.merge(fired[[*keys, "penalty_rate"]], on=keys, how="left")


def _with_reported(preset: Preset, table: pd.DataFrame) -> pd.DataFrame:
    """The rows with what was reported of the same task and system."""
    found = table.astype({"task": str, "system": str})
    at = {(each.task, each.system): each for each in preset.reported}
    rows = [at.get((str(task), str(system))) for task, system in found[["task", "system"]].values]
    for name in ("accuracy", "tokens_per_second", "improvement"):
        found[f"reported_{name}"] = [None if row is None else getattr(row, name) for row in rows]
    return found


def _claims(found: Frames, preset: Preset) -> Iterator[str]:
    """Reported differences between EASD and others beside those here, and what was detectable."""
    accuracies = {(each.task, each.system): each.accuracy for each in preset.reported}
    tasks = [*found.present_tasks, *([POOLED] if len(found.present_tasks) > 1 else [])]
    worth, source = _WORTH, ""
    for (task, other), theirs in accuracies.items():
        ours = accuracies.get((task, _EASD))
        if other == _EASD or ours is None or theirs is None:
            continue
        if other == found.baseline:
            worth, source = abs(ours - theirs), f", as reported on {task},"
        if task in tasks and other in found.systems:
            claim = f"reported on {task}: {number(ours - theirs, 'points')} points from {other}"
            yield f"{_EASD} {claim}; {_seen(found, task, other, abs(ours - theirs))}"
    if _EASD in found.systems and found.baseline != _EASD:
        for task in tasks:
            if (task, found.baseline) not in accuracies:
                yield f"{_EASD} on {task}: {_seen(found, task, found.baseline, worth, source)}"


def _cut_off(found: Frames, table: pd.DataFrame) -> Iterator[str]:
    """How many texts end at the limit of tokens, and may lack their answer."""
    table = table[table["task"] == _overall(found)]
    if (table["cut_off"] > 0).any():
        shares = ", ".join(f"{row['system']} {rate(row['cut_off'])}" for row in records(table))
        yield f"Texts that end at the limit of tokens: {shares}."


def _elsewhere(found: Frames, preset: Preset) -> Iterator[str]:
    """What was reported of tasks that are not in the run."""
    tasks = [*found.present_tasks, *([POOLED] if len(found.present_tasks) > 1 else [])]
    others: dict[str, list[str]] = {}
    for each in preset.reported:
        if each.task not in tasks and each.accuracy is not None:
            count = f" ({each.of})" if each.of else ""
            text = f"{each.system} {100 * each.accuracy:.4g} %{count}"
            others.setdefault(each.task, []).append(text)
    if others:
        listed = "; ".join(f"{task}: {', '.join(texts)}" for task, texts in others.items())
        yield f"Reported of tasks that are not in this run: {listed}."


def _seen(found: Frames, task: str, other: str, wanted: float, source: str = "") -> str:
    """The difference between EASD and another system here, and what such a run detects.

    Args:
        found: the run.
        task: its task, or all of them.
        other: the other system.
        wanted: a difference whose number of problems is computed.
        source: where it comes from, as a clause; nothing if the sentence has said so.
    """
    rows = found.common if task == POOLED else found.common[found.common["task"] == task]
    grades = rows.pivot_table(
        index=["problem", "seed"], columns="system", values="correct", observed=True
    )
    if not {_EASD, other} <= set(grades.columns):
        return f"here one of {_EASD} and {other} is not decoded yet."
    both = grades[[_EASD, other]].dropna().astype(float)
    ours, theirs = both[_EASD].to_numpy(), both[other].to_numpy()
    problems = both.index.get_level_values("problem").to_numpy()
    if not both.any(axis=None):
        return f"here {_EASD} and {other} solve no problem, which says nothing about a difference."
    gap = paired_difference(ours, theirs, problems)
    seeds = max(1, gap.n // gap.n_clusters)
    spread = Spread.of_pilot(ours, theirs, problems)
    least = spread.detectable(gap.n_clusters, seeds, _POWER)
    value, low, high = (number(each, "points") for each in (gap.value, gap.low, gap.high))
    shown = "no difference" if least is None else f"{number(least, 'size')} points or more"
    # Without a text that tells them apart, how often they differ has a lower bound only.
    known = "about" if gap.gained or gap.lost else "at least"
    needed = f"{known} {spread.required(wanted, seeds, _POWER):,}"
    return (
        f"here {value} [{low}, {high}] points from {other}. If nothing else were compared, "
        f"{p_words(gap.p_value)}, and {counted(gap.n_clusters, 'problem')} would detect {shown} "
        f"with {_POWER:.0%} power; "
        f"{number(wanted, 'size')} points{source} take {needed} problems."
    )


def _speed(found: Frames, preset: Preset) -> Section:
    table = metrics.serving(found) if found.is_remote else metrics.speed(found)
    if not found.is_remote:
        table = _with_penalties(found, table)
    sentences = []
    beside = found.first_of("speculative")
    if beside is not None and _EASD in found.systems and not found.is_remote:
        for row in records(metrics.speed(replace(found, baseline=beside))):
            if row["system"] == _EASD and row["task"] == _overall(found):
                sentences.append(
                    f"{_EASD} decodes at {with_interval(row, 'improvement', 'factor')} times the "
                    f"speed of {beside}; the paper's {_paper_ratio(preset)}."
                )
    return _section(preset, sentences, tables_by_task(_with_reported(preset, table), _SPEED))


def _overall(found: Frames) -> str:
    tasks = found.present_tasks
    return POOLED if len(tasks) > 1 else tasks[0]


def _paper_ratio(preset: Preset) -> str:
    speeds = {
        each.system: each.tokens_per_second
        for each in preset.reported
        if each.tokens_per_second is not None
    }
    ours, theirs = speeds[_EASD], speeds["speculative"]
    return f"{ours:g} and {theirs:g} tokens a second are {number(ours / theirs, 'factor')}"


def _thresholds(found: Frames, preset: Preset) -> Section:
    table = metrics.sensitivity(found)
    if table.empty:
        return _section(preset, ["No text is decoded yet."], [])
    keys = ["task", "system"]
    own = _accuracies(found).drop(columns=["accuracy", "cut_off", "penalty_rate"], errors="ignore")
    table = table.astype({"system": str}).merge(own.astype({"system": str}), on=keys, how="left")
    order = ["task", "penalty_rate" if "penalty_rate" in table else "tau_h"]
    sentences = []
    if "penalty_rate" in table:
        shut = int((table["penalty_rate"] == 0).sum())
        sentences.append(
            f"Cells come by penalty rate. In {shut} of {len(table)} nothing is ever penalised."
        )
        sentences += _trend(table)
    else:
        sentences.append("A server does not report where its gate was open.")
    shown = table.sort_values(order, ignore_index=True).drop(
        columns=["accuracy_low", "accuracy_high"]
    )
    return _section(preset, sentences, tables_by_task(shown, _THRESHOLDS))


def _trend(table: pd.DataFrame) -> Iterator[str]:
    """Accuracy from the fewest to the most penalties on each task."""
    for task, rows in table.groupby("task", sort=False):
        if rows["penalty_rate"].nunique() > 1:
            few, many = rows.loc[
                [rows["penalty_rate"].idxmin(), rows["penalty_rate"].idxmax()]
            ].iloc
            yield (
                f"On {task}, from the fewest penalties to the most ("
                f"{number(few['penalty_rate'], 'percent')} to "
                f"{number(many['penalty_rate'], 'percent')} % of examined tokens), accuracy goes "
                f"from {number(few['accuracy'], 'percent')} to "
                f"{number(many['accuracy'], 'percent')} %."
            )


def _failures(found: Frames, preset: Preset) -> Section:
    every = metrics.flips(found, _EASD, limit=len(found.samples))
    if every.empty:
        return _section(preset, [f"{_EASD} and {found.baseline} are right on the same texts."], [])
    lost = every[every["direction"] == LOST]
    sentences = [
        f"{_EASD} loses {counted(len(lost), 'text')} that {found.baseline} has right, and gains "
        f"{len(every) - len(lost)} that it has wrong."
    ]
    tables: list[Table] = []
    if found.is_remote:
        sentences.append("A server reports no tokens, so what was refused is not known.")
    else:
        refused = _refused(found, lost)
        first = refused[refused["role"] == "first"]["item"].nunique() if len(refused) else 0
        sentences.append(
            f"In {first} of the {counted(len(lost), 'lost text')} the first token that differs "
            "replaces a refused one."
        )
        kept = list(lost["item"].head(_SHOWN))
        shown = refused[refused["item"].isin(kept)] if len(refused) else refused
        tables.append(make_table(shown, _REFUSED, "What was refused in the lost texts below"))
    few = every.groupby(["task", "direction"], sort=False).head(_SHOWN)
    beside = flipped(found, {"flips": few, "differences": metrics.differences(found)})
    return replace(_section(preset, sentences, tables), flips=beside.flips)


def _refused(found: Frames, lost: pd.DataFrame) -> pd.DataFrame:
    """Every penalised token of lost texts, with its replacement and what came of it."""
    keys = ["task", "seed", "request", "position"]
    columns = [*keys, "outcome", "text", "draft_entropy", "target_entropy", "overlap"]
    tokens = found.tokens.select([*columns, "system"]).to_pandas()
    tokens = tokens[tokens["system"] == _EASD]
    refused = tokens[tokens["outcome"] == "penalised"].rename(columns={"text": "refused"})
    instead = tokens[tokens["outcome"] == "replacement"][[*keys, "text"]]
    both = refused.merge(instead.rename(columns={"text": "replacement"}), on=keys)
    samples = found.samples[found.samples["system"] == _EASD]
    named = samples[["task", "seed", "index", "item", "prompt_tokens"]].astype({"task": str})
    both = both.merge(named.rename(columns={"index": "request"}), on=["task", "seed", "request"])
    both = both.merge(lost[["task", "seed", "item", "place"]], on=["task", "seed", "item"])
    both["at"] = both["position"] - both["prompt_tokens"]
    gap = (both["at"] - both["place"].astype(int)).to_numpy()
    both["role"] = ["kept" if each < 0 else "later" if each else "first" for each in gap]
    for name in ("refused", "replacement"):
        both[name] = both[name].map(quoted)
    return both.sort_values(["task", "item", "seed", "at"], ignore_index=True)


def _section(preset: Preset, sentences: Sequence[str], tables: Sequence[Table]) -> Section:
    return Section(
        name=preset.name,
        title=preset.title,
        sentences=tuple(sentences),
        warnings=preset.notes,
        tables=tuple(table for table in tables if table.rows),
    )
