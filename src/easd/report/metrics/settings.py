"""Settings of systems, of the run and of tasks."""

from __future__ import annotations

from typing import Any

import pandas as pd

from easd.report.metrics.frames import Frames


def system_settings(frames: Frames) -> pd.DataFrame:
    """Every field of every rule, and every setting that a system does not share.

    Columns: system, kind, rule, fields, settings.
    """
    return pd.DataFrame(
        {
            "system": system,
            "kind": frames.kind(system),
            "fields": _listed({**frames.rule(system), **_reward(frames.description(system))}),
            "settings": _listed(frames.description(system).get("settings") or {}),
        }
        for system in frames.systems
    )


def shared_settings(frames: Frames) -> pd.DataFrame:
    """Settings that all systems share: models, decoding, client, versions, hardware, checkout.

    Columns: part, name, value.
    """
    run = frames.run
    parts = {
        "run": {name: run.get(name) for name in ("status", "started", "ended", "format")},
        "models": run.get("models"),
        "decoding": {k: v for k, v in (run.get("config") or {}).items() if k != "tasks"},
        "client": run.get("client"),
        "versions": run.get("versions"),
        "hardware": run.get("hardware"),
        "checkout": run.get("git"),
    }
    return pd.DataFrame(
        [
            {"part": part, "name": name, "value": value}
            for part, values in parts.items()
            for name, value in _flat(values or {})
        ],
        columns=["part", "name", "value"],
    )


def task_settings(frames: Frames) -> pd.DataFrame:
    """Source of each task, and the lines that could not be read.

    Columns: task, items, skipped, skipped_lines, then every other entry of run.json.
    """
    rows = []
    for name, task in frames.run["tasks"].items():
        skipped = task.get("skipped") or []
        rows.append(
            {
                "task": name,
                "items": task["items"],
                "skipped": len(skipped),
                "skipped_lines": "; ".join(_plain(line) for line in skipped),
                **{k: _plain(v) for k, v in task.items() if k not in ("items", "skipped")},
            }
        )
    return pd.DataFrame(rows)


def _reward(description: dict[str, Any]) -> dict[str, Any]:
    """The fields of reward-guided decoding."""
    return {k: v for k, v in description.items() if k not in ("name", "kind", "rule", "settings")}


def _flat(values: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{above}{name}.")
        else:
            found.append((above + name, _plain(value)))
    return found


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items() if name != "name")


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return " + ".join(map(_plain, value)) or "none"
    if isinstance(value, dict):
        return _listed(value) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
