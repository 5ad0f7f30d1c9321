"""Sections that record: single texts, and every setting."""

from __future__ import annotations

import pandas as pd

from easd.report.cells import counted
from easd.report.metrics import Frames
from easd.report.metrics.flips import GAINED, LOST
from easd.report.metrics.frames import records
from easd.report.page import Flip, Section, make_table


def flipped(frames: Frames, table: pd.DataFrame, differences: pd.DataFrame) -> Section:
    """Texts that the system shown turned from right to wrong, and back."""
    system, baseline = frames.focus, frames.baseline
    if table.empty:
        sentence = f"{system} turned no answer of {baseline} from right to wrong or back."
        return Section(name="flips", title="Flips", sentences=(sentence,))
    sentences = [
        f"On {row['task']}, {system} lost {int(row['lost'])} texts that {baseline} has right and "
        f"gained {int(row['gained'])} that it has wrong, of {int(row['pairs']):,}."
        for row in records(differences[differences["system"] == system])
        if row["task"] in frames.tasks
    ]
    first = "Below are the first of each kind in the task's order"
    if frames.is_remote:
        sentences.append(f"{first}; texts part at the first different character.")
    else:
        sentences.append(f"{first}; the first different token is marked.")
    if frames.run.get("config", {}).get("coupling") == "shared":
        sentences.append(
            "Under shared noise the texts are the same up to the first token that a penalty "
            "changed."
        )
    return Section(
        name="flips",
        title="Flips",
        sentences=tuple(sentences),
        flips=tuple(_flip(row, baseline) for row in records(table)),
    )


def settings(
    frames: Frames, systems: pd.DataFrame, shared: pd.DataFrame, tasks: pd.DataFrame
) -> Section:
    """Every open choice, and all that it takes to repeat the run."""
    return Section(
        name="settings",
        title="Settings",
        sentences=(
            f"{counted(len(frames.systems), 'system')} on {counted(len(frames.tasks), 'task')}; "
            "every field of every rule stands below, chosen or left at its default.",
        ),
        tables=(
            make_table(systems, ("system", "kind", "fields", "settings"), "Systems"),
            make_table(tasks, list(tasks.columns), "Tasks"),
            make_table(shared, ("part", "name", "value"), "Shared by all systems", is_open=False),
        ),
    )


def _flip(row: dict, baseline: str) -> Flip:
    words = {
        LOST: f"{baseline} right, {row['system']} wrong",
        GAINED: f"{baseline} wrong, {row['system']} right",
    }
    sides = (
        _side(baseline, row["baseline_answer"], row["baseline_token"], row["baseline_rest"]),
        _side(row["system"], row["answer"], row["token"], row["rest"]),
    )
    return Flip(
        title=f"{row['task']}, item {row['item']}, seed {row['seed']}: {words[row['direction']]}",
        prompt=row["prompt"],
        answers=" or ".join(map(str, row["answers"])),
        shared=row["shared"],
        sides=sides,
    )


def _side(system: str, answer: str | None, token: str, rest: str) -> dict[str, str]:
    return {
        "system": system,
        "answer": "none" if answer is None else answer,
        "token": token,
        "rest": rest,
    }
