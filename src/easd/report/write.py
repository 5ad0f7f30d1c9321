"""Writes a report as HTML, Markdown and files, from a run's tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from easd.errors import ConfigError, TraceError, visible
from easd.report import entropies, gate, metrics, record, speed, verdict
from easd.report.metrics import Frames, frames
from easd.report.metrics.columns import Column
from easd.report.metrics.frames import Tables
from easd.report.page import (
    Cell,
    Figure,
    Flip,
    Part,
    Section,
    Table,
    counted,
    heading_unit,
)
from easd.runs import Run

_FORMULA = ("=", "+", "-", "@")  # a spreadsheet evaluates cells that begin with these
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$&])")
_IDS = re.compile(r'(id="|href="#|url\(#)([^")]+)')


def html(parts: Sequence[Part], title: str) -> str:
    """One page that needs no other file and no script."""
    environment = Environment(
        loader=PackageLoader("easd.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_shown,
    )
    environment.filters |= {"drawing": drawing, "unit": heading_unit}
    template = environment.get_template("report.html.j2")
    return template.render(parts=parts, title=title, glossary=_glossary(parts))


def markdown(parts: Sequence[Part], title: str) -> str:
    """The same in Markdown; figures are links into the folder `figures`."""
    lines = [f"# {_escaped(title)}", ""]
    for part in parts:
        lines += [f"## {_escaped(f'{part.title} ({part.name})')}", "", _escaped(part.summary), ""]
        for section in part.sections:
            lines += _section_lines(part, section)
    lines += ["## Columns", ""]
    lines += [f"- **{_escaped(c.heading)}**: {_escaped(c.definition)}" for c in _glossary(parts)]
    return "\n".join(lines) + "\n"


def figure_file(part: Part, figure: Figure) -> str:
    """The name of a figure's file."""
    return f"{part.name}-{figure.name}.svg"


def drawing(figure: Figure, part: Part) -> Markup:
    """The figure's SVG with ids unique to the page and a text for screen readers."""
    prefix = f"{part.name}-{figure.name}-"
    svg = _IDS.sub(lambda match: f"{match[1]}{prefix}{match[2]}", figure.svg)
    label = Markup.escape(visible(figure.caption))
    # Markup is safe: matplotlib escapes names in its drawings.
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def _shown(value: Any) -> Any:
    """A value as the page prints it: control characters of text spelt out."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _glossary(parts: Sequence[Part]) -> list[Column]:
    columns = {
        column.heading + column.definition: column
        for part in parts
        for section in part.sections
        for table in section.tables
        for column in table.columns
        if column.definition
    }
    return sorted(columns.values(), key=lambda column: column.heading.lower())


def _section_lines(part: Part, section: Section) -> list[str]:
    lines = [f"### {_escaped(section.title)}", ""] if section.title != part.title else []
    for sentence in section.sentences:
        lines += [_escaped(sentence), ""]
    for warning in section.warnings:
        lines += [f"> {_escaped(warning)}", ""]
    for figure in section.figures:
        caption = _escaped(figure.caption)
        lines += [f"![{caption}](figures/{figure_file(part, figure)})", ""]
    for table in section.tables:
        lines += _table_lines(table)
    for flip in section.flips:
        lines += _flip_lines(flip)
    return lines


def _table_lines(table: Table) -> list[str]:
    if not table.rows:
        return []
    headings = [_heading(column) for column in table.columns]
    lines = [f"**{_escaped(table.title)}**", ""] if table.title else []
    numeric = [cell.is_number for cell in table.rows[0]]
    lines.append("| " + " | ".join(headings) + " |")
    lines.append("|" + "|".join("---:" if number else "---" for number in numeric) + "|")
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
    return [*lines, ""]


def _flip_lines(flip: Flip) -> list[str]:
    lines = [f"#### {_escaped(flip.title)}", "", *_quoted("prompt", flip.prompt)]
    lines += [f"Right: {_one_line(flip.answers)}", ""]
    for side in flip.sides:
        lines += [f"{_one_line(side['system'])} answers {_one_line(side['answer'])}:", ""]
        marked = f"{flip.shared}⟦{side['token']}⟧{side['rest']}"
        lines += _quoted("", marked)
    return lines


def _quoted(name: str, text: str) -> list[str]:
    """Text as a code block, with a fence longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{name}", visible(text), fence, ""]


def _heading(column: Column) -> str:
    unit = heading_unit(column.kind)
    return _escaped(f"{column.heading}, {unit}" if unit else column.heading)


def _cell(cell: Cell) -> str:
    return _one_line(f"{cell.text} {cell.interval}".strip())


def _one_line(text: str) -> str:
    return _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", visible(text))


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

# Sections that need the engine's records, which servers do not report.
_SECTIONS = (
    speed.speeds,
    speed.works,
    gate.firing_rates,
    gate.trade,
    gate.thresholds,
    entropies.entropies,
    entropies.correctness,
    gate.refusals,
)


def build(frames: Frames, name: str, margin: float) -> Part:
    """Computes every table and section of one run.

    Args:
        frames: of the run.
        name: of the run, distinct within the report.
        margin: the largest negligible difference, as a fraction.
    """
    models = frames.run.get("models", {}).get("pair") or frames.run.get("config", {}).get("model")
    title = f"{models or name} on {', '.join(frames.tasks)}"
    if frames.samples.empty:
        return Part(name=name, title=title, summary="This run has no samples yet.")
    tables = _tables(frames, margin)
    inside = (speed.served,) if frames.is_remote else _SECTIONS
    sections = (
        verdict.verdict(frames, tables, margin),
        verdict.accuracies(frames, tables),
        verdict.paired(frames, tables),
        *(section(frames, tables) for section in (*inside, record.flipped, record.settings)),
    )
    return Part(
        name=name,
        title=title,
        summary=_summary(frames),
        sections=tuple(section for section in sections if section is not None),
        frames=tables,
    )


def _tables(frames: Frames, margin: float) -> Tables:
    inside = (metrics.serving,) if frames.is_remote else _INSIDE
    found = {each.__name__: each(frames) for each in (*_ALWAYS, *inside)}
    found["differences"] = metrics.differences(frames, margin=margin)
    speculative = frames.first_of("speculative")
    against = pd.DataFrame()
    if speculative is not None and speculative != frames.baseline:
        against = metrics.differences(frames, speculative, margin=margin)
    found["differences_to_speculative"] = against
    found["differences_to_best"] = metrics.differences_to_best(frames, margin=margin)
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


def write_report(
    runs: Sequence[Run], out: str | Path, baseline: str | None = None, margin: float = 0.01
) -> Path:
    """Writes report.html, report.md, figures and tables; returns the page's path.

    Each run has its own comparisons: systems of different runs are never compared.

    Args:
        runs: evaluations, as `easd.runs.open_run` returns them.
        out: the folder; files of an earlier report in it are replaced.
        baseline: the system that others are compared with; target-only by default.
        margin: the largest negligible difference, as a fraction.

    Raises:
        ConfigError: There is no run, or the baseline is not a system of one.
        TraceError: The folder cannot be written.
    """
    if not runs:
        raise ConfigError("there is no run to report on; name at least one folder")
    if not 0 < margin < 1:
        raise ConfigError(
            f"margin = {margin} is not a fraction in (0, 1); 0.01 is one point of accuracy"
        )
    names = _names(runs)
    parts = [
        build(frames(run, baseline), name, margin) for run, name in zip(runs, names, strict=True)
    ]
    title = "Evaluation of " + ", ".join(dict.fromkeys(part.title for part in parts))
    out = Path(out)
    try:
        _write(out, parts, title)
    except OSError as error:
        raise TraceError(
            f"cannot write a report to {str(out)!r} ({error.strerror}); name another folder"
        ) from None
    return out / "report.html"


def _write(out: Path, parts: Sequence[Part], title: str) -> None:
    for folder in ("tables", "figures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(html(parts, title), encoding="utf-8")
    (out / "report.md").write_text(markdown(parts, title), encoding="utf-8")
    for part in parts:
        for section in part.sections:
            for figure in section.figures:
                path = out / "figures" / figure_file(part, figure)
                path.write_text(figure.svg, encoding="utf-8")
    for name in dict.fromkeys(name for part in parts for name in part.frames):
        table = pd.concat(
            [part.frames[name].assign(run=part.name) for part in parts if name in part.frames],
            ignore_index=True,
        )
        if table.shape[1] <= 1:
            continue
        table.insert(0, "run", table.pop("run"))
        _for_spreadsheets(table).to_csv(out / "tables" / f"{name}.csv", index=False)
        table.to_parquet(out / "tables" / f"{name}.parquet", index=False)


def _for_spreadsheets(table: pd.DataFrame) -> pd.DataFrame:
    """The table with texts that no spreadsheet evaluates and no terminal executes."""
    columns = table.select_dtypes(exclude=["number", "bool"]).columns
    return table.assign(**{str(name): table[name].map(_cell_text) for name in columns})


def _cell_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.lstrip()[:1] in _FORMULA else text


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders' names as ids, numbered where several are equal."""
    found: list[str] = []
    for run in runs:
        name = re.sub(r"[^a-zA-Z0-9-]+", "-", run.folder.resolve().name).strip("-") or "run"
        same = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in found)
        found.append(f"{name}-{same + 1}" if same else name)
    return found
