"""From a run's tables to the parts of a report."""

from __future__ import annotations

import pandas as pd

from easd.report import behaviour, cost, evidence, metrics, record, remote
from easd.report.cells import counted
from easd.report.metrics import Frames
from easd.report.page import Part, Section

_REFERENCE = "speculative"
_ALWAYS = (
    metrics.accuracy,
    metrics.coverage,
    metrics.flips,
    metrics.system_settings,
    metrics.shared_settings,
    metrics.task_settings,
)
_INSIDE = (
    metrics.speed,
    metrics.drafting,
    metrics.work,
    metrics.firing,
    metrics.tradeoffs,
    metrics.penalised_samples,
    metrics.sensitivity,
    metrics.entropy_histogram,
    metrics.entropy_summary,
    metrics.overlap_counts,
    metrics.joint_conditions,
    metrics.correctness_by_entropy,
    metrics.entropy_correlation,
    metrics.refused_tokens,
    metrics.replacements,
)


def build(frames: Frames, name: str, margin: float) -> Part:
    """Computes every table of one run and says what it shows.

    Args:
        name: tells the run from the report's others.
        margin: the greatest difference of no consequence, as a fraction.
    """
    models = frames.run.get("models", {}).get("pair") or frames.run.get("config", {}).get("model")
    title = f"{models or name} on {', '.join(frames.tasks)}"
    if frames.samples.empty:
        return Part(name=name, title=title, summary="This run has no samples yet.")
    tables = _tables(frames, margin)
    evidences = (
        evidence.verdict(frames, tables["differences"], margin),
        evidence.accuracies(frames, tables["accuracy"], tables["coverage"]),
        evidence.paired(frames, tables["differences"], tables["differences_to_speculative"]),
    )
    records = (
        record.flipped(frames, tables["flips"], tables["differences"]),
        record.settings(
            frames, tables["system_settings"], tables["shared_settings"], tables["task_settings"]
        ),
    )
    inside = (
        (remote.served(frames, tables["serving"]),) if frames.is_remote else _inside(frames, tables)
    )
    sections = (*evidences, *inside, *records)
    return Part(
        name=name,
        title=title,
        summary=_summary(frames),
        sections=tuple(section for section in sections if section is not None),
        frames=tables,
    )


def _inside(frames: Frames, tables: dict[str, pd.DataFrame]) -> tuple[Section | None, ...]:
    """What only an engine of one's own can tell."""
    return (
        cost.speeds(frames, tables["speed"], tables["drafting"]),
        cost.works(frames, tables["work"]),
        behaviour.firing_rates(frames, tables["firing"]),
        behaviour.trade(frames, tables["tradeoffs"]),
        behaviour.thresholds(frames, tables["sensitivity"]),
        behaviour.entropies(
            frames,
            tables["entropy_histogram"],
            tables["entropy_summary"],
            tables["overlap_counts"],
            tables["joint_conditions"],
        ),
        behaviour.correctness(
            frames, tables["correctness_by_entropy"], tables["entropy_correlation"]
        ),
        behaviour.refusals(frames, tables["refused_tokens"], tables["penalised_samples"]),
    )


def _tables(frames: Frames, margin: float) -> dict[str, pd.DataFrame]:
    inside = (metrics.serving,) if frames.is_remote else _INSIDE
    found = {each.__name__: each(frames) for each in (*_ALWAYS, *inside)}
    found["differences"] = metrics.differences(frames, margin=margin)
    speculative = next((s for s in frames.systems if frames.kind(s) == _REFERENCE), None)
    against = pd.DataFrame()
    if speculative is not None and speculative != frames.baseline:
        against = metrics.differences(frames, speculative, margin=margin)
    found["differences_to_speculative"] = against
    return found


def _time(stamp: str | None) -> str:
    return str(stamp or "at an unknown time").replace("T", " ").replace("+00:00", " UTC")


def _summary(frames: Frames) -> str:
    run = frames.run
    done = len(frames.samples)
    seeds = frames.samples["seed"].nunique()
    return (
        f"{counted(done, 'text')}: {counted(len(frames.systems), 'system')}, "
        f"{counted(len(frames.present_tasks), 'task')}, {counted(seeds, 'seed')}. "
        f"Run {run.get('status', 'unknown')}, begun {_time(run.get('started'))}. "
        f"Baseline: {frames.baseline}. System shown in close-ups: {frames.focus or 'none'}."
    )
