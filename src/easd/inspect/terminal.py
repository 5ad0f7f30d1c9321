"""Prints a trace in the terminal: accepted and refused tokens, and their replacements."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc
from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.rule import Rule as Line
from rich.table import Table
from rich.text import Text

from easd.errors import TraceError, visible
from easd.runs import Run, summary
from easd.runs.schema import EMITTED

# Okabe and Ito's palette for colour-blind readers, with a mark for each colour.
_PLAIN = "default"
_REPLACEMENT = "underline #E69F00"
_BONUS = "#56B4E9"
_REFUSED = "strike #D55E00"
_PENALTY = "bold underline #CC79A7"
_ABOVE = "#CC79A7"
_MARKS = {"replacement": "~", "bonus": "+"}

_THRESHOLDS = ("tau_h", "tau_o", "top_n", "rate")
_BARS = "▁▂▃▄▅▆▇█"
_LABEL = 8
_CELL = 10
_CONTEXT = 28
_NUMBERS = 75  # width of the table of penalties without context and top tokens
_LEAST_TOP = 20


def render(trace: Run, sample: int, console: Console) -> None:
    """Prints one text of a trace, and the summary of the whole run.

    Raises:
        TraceError: The trace holds no such text.
    """
    rule = trace.run["config"]["rule"]
    rows = _rows(trace, sample)
    console.print(Line(Text(_heading(trace, sample)), align="left", style="dim"))
    console.print(_prompt(trace, sample))
    console.print(_decoded(rows))
    console.print(_legend())
    console.print(_entropies(rows, rule, console.width))
    console.print(_penalties(rows, trace, console.width))
    console.print(summary_panel(summary(trace), trace.run["config"], title=_title(trace)))


def summary_panel(found: dict[str, Any], config: dict[str, Any], *, title: str) -> Panel:
    """Counts and rates with the names of `Tally.summary`."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, value in _lines(found, config):
        grid.add_row(name, Text(visible(value)))
    return Panel(
        grid, title=Text(visible(title)), title_align="left", box=box.ROUNDED, expand=False
    )


def describe_rule(rule: dict[str, Any]) -> str:
    """A rule's name and fields in one line, thresholds first."""
    ordered = sorted(rule, key=lambda name: name not in _THRESHOLDS)
    fields = [
        f"{name} {_value(rule[name])}{' nats' if name == 'tau_h' else ''}"
        for name in ordered
        if name != "name"
    ]
    return f"{rule['name']}: {', '.join(fields)}" if fields else rule["name"]


def _heading(trace: Run, sample: int) -> str:
    cell = trace.run.get("cell")
    where = f": {cell['system']}, {cell['task']}, seed {cell['seed']}" if cell else ""
    return visible(f"text {sample}{where}")


def _title(trace: Run) -> str:
    status = trace.run["status"]
    name = trace.run["models"]["pair"]
    ended = "" if status == "finished" else f" ({status})"
    return f"{name}: {_count(trace.samples.num_rows, 'finished text')}{ended}"


def _rows(trace: Run, sample: int) -> list[dict[str, Any]]:
    rows = trace.tokens.filter(pc.field("sample") == sample).to_pylist()
    if not rows:
        known = len(set(trace.tokens["sample"].to_pylist()))
        has = f"it has 0 to {known - 1}" if known else "it has none yet"
        raise TraceError(f"the trace holds no text {sample}; {has}")
    return rows


def _prompt(trace: Run, sample: int) -> Text:
    found = trace.samples.filter(pc.field("sample") == sample).to_pylist()
    if not found:
        return Text("(this text was cut off before it ended)", style="dim")
    return Text(visible(found[0]["prompt"]).strip(), style="dim")


def _decoded(rows: list[dict[str, Any]]) -> Text:
    """The emitted text, with each penalised token before its replacement."""
    text = Text()
    refused: dict[str, Any] = {}
    for row in rows:
        outcome = row["outcome"]
        if outcome in ("rejected", "penalised"):
            refused = row
        space, token = _split(row["text"])
        if outcome == "accepted":
            text.append(visible(row["text"]), _PLAIN)
        elif outcome == "bonus":
            text.append(space).append(_MARKS["bonus"] + token, _BONUS)
        elif outcome == "replacement" and refused["outcome"] == "penalised":
            text.append(space).append("[").append(_split(refused["text"])[1], _REFUSED)
            text.append("→").append(token, _PENALTY).append("]")
        elif outcome == "replacement":
            text.append(space).append(_MARKS["replacement"] + token, _REPLACEMENT)
    return text


def _legend() -> Text:
    text = Text("\nkept draft token   ")
    text.append("~replacement", _REPLACEMENT).append(" after a rejection   ")
    text.append("+bonus", _BONUS).append(" after a whole block   ")
    text.append("[").append("refused", _REFUSED).append("→").append("replacement", _PENALTY)
    return text.append("] at an open gate\n")


def _entropies(rows: list[dict[str, Any]], rule: dict[str, Any], width: int) -> Group:
    """Two bars per emitted token, draft over target, and a line with the gate's state."""
    emitted = [row for row in rows if row["outcome"] in EMITTED]
    tau_h = float(rule.get("tau_h", math.inf))
    values = [row[f"{model}_entropy"] or 0.0 for row in emitted for model in ("draft", "target")]
    top = max([*values, tau_h * 1.25 if math.isfinite(tau_h) else 0.0, 0.1])
    penalised = {row["position"] for row in rows if row["outcome"] == "penalised"}
    lines: list[Text] = []
    step = max(width - _LABEL - 1, 10)
    for first in range(0, len(emitted), step):
        chunk = emitted[first : first + step]
        for model in ("draft", "target"):
            line = Text(no_wrap=True).append(f"H {model}".ljust(_LABEL + 1), "dim")
            for row in chunk:
                value = row[f"{model}_entropy"]
                line.append(_bar(value, top), _ABOVE if (value or 0) > tau_h else "default")
            lines.append(line)
        gate = "".join(_gate_mark(row, penalised, tau_h) for row in chunk)
        lines.append(Text().append("gate".ljust(_LABEL + 1), "dim").append(gate, _ABOVE))
    scale = Text(f"entropy per token, █ = {top:.2f} nats", style="dim")
    if math.isfinite(tau_h):
        scale.append(f", tau_h = {tau_h:.3g} is {_bar(tau_h, top)}")
    scale.append("; gate: x penalised, ○ open but kept, · both above tau_h, overlap too small\n")
    return Group(*lines, scale)


def _bar(value: float | None, top: float) -> str:
    if value is None:
        return " "
    return _BARS[min(int(value / top * len(_BARS)), len(_BARS) - 1)]


def _gate_mark(row: dict[str, Any], penalised: set[int], tau_h: float) -> str:
    if row["position"] in penalised:
        return "x"
    if (row["gate"] or 0) >= 1:
        return "○"
    both = min(row["draft_entropy"] or 0.0, row["target_entropy"] or 0.0)
    return "·" if both > tau_h else " "


def _penalties(rows: list[dict[str, Any]], trace: Run, width: int) -> Table | Text:
    context = max(min(_CONTEXT, width - _NUMBERS), 1)
    top = width - _NUMBERS - _CONTEXT
    table = Table(title="penalties", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("at", "context", "removed", "instead"):
        table.add_column(name, justify="right" if name in ("at", "context") else "left")
    for name in ("H_d", "H_t", "shared", "p(x)", "q(x)"):
        table.add_column(name, justify="right")
    if top >= _LEAST_TOP:
        table.add_column("the target's top tokens")
    vocabulary = (trace.vocabulary[name].to_pylist() for name in ("token", "text"))
    texts = dict(zip(*vocabulary, strict=True))
    before, refused = "", None
    for row in rows:
        if row["outcome"] == "penalised":
            refused = row
        if row["outcome"] not in EMITTED:
            continue
        if row["outcome"] == "replacement" and refused is not None:
            cells = [
                Text(str(refused["position"])),
                Text(_one_line(before)[-context:]),
                _cell(_token(refused["text"]), _CELL, _REFUSED),
                _cell(_token(row["text"]), _CELL, _PENALTY),
                Text(f"{refused['draft_entropy']:.2f}"),
                Text(f"{refused['target_entropy']:.2f}"),
                Text(f"{refused['overlap']:.1f}"),
                Text(f"{refused['target_prob']:.3f}"),
                Text(f"{refused['draft_prob']:.3f}"),
                _cell(_top_tokens(refused, texts), top, "dim"),
            ]
            table.add_row(*cells[: len(table.columns)])
            refused = None
        before += row["text"]
    return table if table.row_count else Text("no token was penalised in this text\n", "dim")


def _cell(text: str, width: int, style: str) -> Text:
    cell = Text(text, style)
    cell.truncate(max(width, 1), overflow="ellipsis")
    return cell


def _top_tokens(row: dict[str, Any], texts: dict[int, str]) -> str:
    best = zip(row["target_top_tokens"], row["target_top_probs"], strict=True)
    return ", ".join(f"{_token(texts[token])} {prob:.2f}" for token, prob in best)


def _lines(found: dict[str, Any], config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "rule", describe_rule(config["rule"])
    drafting = f"gamma {config['gamma']}, drafter {config['drafter']}, "
    yield (
        "decoding",
        f"{drafting if found['proposed'] else ''}temperature {_value(config['temperature'])}, "
        f"seed {config['seed']}, coupling {config['coupling'] or 'of the rule'}",
    )
    # The rule `draft` runs the draft as the target.
    model = "draft" if config["rule"]["name"] == "draft" else "target"
    efficiency = found["block_efficiency"]
    yield (
        "tokens",
        f"{found['tokens']} in {_count(found['blocks'], f'{model} forward')}"
        + (f", {efficiency:.2f} per forward" if efficiency is not None else ""),
    )
    if found["proposed"]:
        yield (
            "drafted",
            f"{found['proposed']}: {found['examined']} examined, {found['accepted']} accepted "
            f"({_percent(found['acceptance_rate'])} of examined, "
            f"{_percent(found['draft_utilisation'])} of drafted)",
        )
    if found["gate_open"] is not None:
        yield "gate", _gate_line(found)
    seconds = found["seconds"]
    if not found["proposed"]:
        seconds = {model: seconds["target"], "other": sum(seconds.values()) - seconds["target"]}
    total = sum(seconds.values())
    if total:
        parts = ", ".join(f"{name} {_percent(part / total)}" for name, part in seconds.items())
        yield "time", f"{total:.2f} s, {found['tokens'] / total:.1f} tok/s: {parts}"


def _gate_line(found: dict[str, Any]) -> str:
    line = (
        f"open at {_percent(found['gate_opening_rate'])} of examined ({found['gate_open']:g}), "
        f"{found['penalised']} penalised ({_percent(found['penalty_rate'])})"
    )
    if found.get("conditions"):
        shares = [f"{name} {_percent(share)}" for name, share in found["conditions"].items()]
        line += f"; met alone: {', '.join(shares)}"
    return line


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f} %"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _split(token: str) -> tuple[str, str]:
    """Leading white space, and the rest with control characters spelt out."""
    rest = token.lstrip(" \n")
    space = token[: len(token) - len(rest)]
    return space, visible(rest) or ("⏎" if "\n" in space else "␣")


def _token(text: str) -> str:
    """A token as the content of a cell."""
    return _one_line(text).strip() or "␣"


def _one_line(text: str) -> str:
    return visible(text).replace("\n", "⏎").replace("\t", "⇥")
