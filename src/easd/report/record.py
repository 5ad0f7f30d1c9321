"""Sections with single texts, and with every setting."""

from __future__ import annotations

from easd.report.metrics import Frames
from easd.report.metrics.accuracy import GAINED, LOST
from easd.report.metrics.frames import Tables, records
from easd.report.page import Flip, Section, counted, make_table


def flipped(frames: Frames, tables: Tables) -> Section:
    """Texts that are right under the baseline and wrong under the system shown, or the reverse."""
    table, differences = tables["flips"], tables["differences"]
    system, baseline = frames.focus, frames.baseline
    if table.empty:
        sentence = f"{system} and {baseline} are right on the same samples."
        return Section(name="flips", title="Flips", sentences=(sentence,))
    sentences = [
        f"On {row['task']}, {system} lost {int(row['lost'])} texts that {baseline} has right and "
        f"gained {int(row['gained'])} that it has wrong, of {int(row['pairs']):,}."
        for row in records(differences[differences["system"] == system])
        if row["task"] in frames.tasks
    ]
    marked = "the first different token is marked"
    if frames.is_remote:
        marked = "texts are split at the first different character"
    sentences.append(f"Below are the first of each kind in the task's order; {marked}.")
    if frames.run.get("config", {}).get("coupling") == "shared":
        rounded = frames.run.get("models", {}).get("dtype") in ("bfloat16", "float16")
        sentences.append(
            "Under shared noise the texts are equal up to the first token that a penalty changed"
            + (", or that was rounded otherwise in a block of another length." if rounded else ".")
        )
    return Section(
        name="flips",
        title="Flips",
        sentences=tuple(sentences),
        flips=tuple(_flip(row, baseline) for row in records(table)),
    )


def settings(frames: Frames, tables: Tables) -> Section:
    """Every setting, enough to repeat the run."""
    tasks = tables["task_settings"]
    return Section(
        name="settings",
        title="Settings",
        sentences=(
            f"{counted(len(frames.systems), 'system')} on {counted(len(frames.tasks), 'task')}; "
            "every field of every rule is listed below, set or default.",
        ),
        tables=(
            make_table(tables["system_settings"], "system kind fields settings", "Systems"),
            make_table(tasks, tasks.columns, "Tasks"),
            make_table(
                tables["shared_settings"], "part name value", "Shared by all systems", is_open=False
            ),
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


def _side(system: str, answer: object, token: str, rest: str) -> dict[str, str]:
    return {
        "system": system,
        # In a column with other answers pandas reads None as NaN.
        "answer": answer if isinstance(answer, str) else "none",
        "token": token,
        "rest": rest,
    }
