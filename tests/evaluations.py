"""Evaluations made by hand: tables with the numbers a test asks for, and no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from easd.runs import TABLES, Run

EASD = {
    "name": "easd",
    "tau_h": 1.0,
    "tau_o": 0.8,
    "top_n": 5,
    "redraw": "exclude",
    "draft_at_bonus": False,
}

_TABLES = TABLES["evaluation"]


def rule_of(system: str) -> dict[str, Any]:
    """A rule for a system of that name: `easd...` has a gate, others are named after their rule."""
    return dict(EASD) if system.startswith("easd") else {"name": system.partition(",")[0]}


@dataclass
class Evaluation:
    """Collects rows; `run()` makes tables of them."""

    systems: Mapping[str, Mapping[str, Any]]
    tasks: Mapping[str, int]
    seeds: Sequence[int] = (0,)
    coupling: str | None = "shared"
    skipped: Sequence[str] = ()
    status: str = "finished"
    samples: list[dict[str, Any]] = field(default_factory=list)
    units: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)

    def sample(self, system: str, task: str, index: int, seed: int = 0, **values: Any) -> None:
        """A decoded text; unless told otherwise five tokens, two blocks, right."""
        rule = self.systems[system]
        drafts = rule["name"] not in ("target", "draft")
        row = {
            "system": system,
            "task": task,
            "seed": seed,
            "item": f"{task}/{index}",
            "index": index,
            "text": "a b",
            "token_ids": [1, 2, 3, 4, 5],
            "answer": "1",
            "correct": True,
            "finish_reason": "eos",
            "prompt_tokens": 7,
            "new_tokens": 5,
            "blocks": 2 if drafts else 5,
            "proposed": 8 if drafts else 0,
            "examined": 5 if drafts else 0,
            "accepted": 3 if drafts else 0,
            "penalised": 0,
        }
        if rule["name"] == "draft":
            row |= {"blocks": 0, "proposed": 5, "examined": 5, "accepted": 5}
        if "tau_o" in rule:
            conditions = ("draft_entropy", "target_entropy", "overlap")
            row |= {"gate_open": 0.0, **{f"over_{name}": 0 for name in conditions}}
        self.samples.append(row | values)

    def unit(self, system: str, task: str, first: int = 0, seed: int = 0, **values: Any) -> None:
        """A unit that took a second."""
        parts = ("prefill", "draft", "target", "verify", "commit")
        row = {
            "system": system,
            "task": task,
            "seed": seed,
            "first": first,
            "texts": 4,
            "batch": 4,
            "tokens": 20,
            "target_steps": 10,
            "draft_steps": 0 if system.startswith("target") else 40,
            **{f"{part}_seconds": 0.2 for part in parts},
            "seconds": 1.0,
        }
        self.units.append(row | values)

    def token(
        self, system: str, task: str, request: int, position: int, outcome: str, **values: Any
    ) -> None:
        """A traced position; its text is the token's number unless told otherwise."""
        token = values.get("token", position)
        row = {
            "system": system,
            "task": task,
            "seed": 0,
            "run": "unit",
            "sample": request,
            "request": request,
            "step": position,
            "position": position,
            "outcome": outcome,
            "token": token,
            "text": f" t{token}",
            "target_prob": 0.5,
            "draft_entropy": 0.5,
            "target_entropy": 0.5,
            "overlap": 0.4,
        }
        self.tokens.append(row | values)

    def run(self, folder: str = "made") -> Run:
        """The tables, each system's rows with a dictionary of its own, as units are written."""
        items = self.items or [
            {
                "task": task,
                "item": f"{task}/{index}",
                "index": index,
                "prompt": f"What is {index}?",
                "answers": [str(index)],
            }
            for task, count in self.tasks.items()
            for index in range(count)
        ]
        tasks = {
            name: {
                "source": f"made {name}",
                "data_hash": "0" * 16,
                "items": count,
                "skipped": list(self.skipped),
                "max_new_tokens": 24,
                "unique_solution": True,
            }
            for name, count in self.tasks.items()
        }
        run = {
            "format": 1,
            "kind": "evaluation",
            "status": self.status,
            "started": "2026-01-02T03:04:05+00:00",
            "ended": None,
            "config": {
                "pair": "made",
                "gamma": 4,
                "coupling": self.coupling,
                "seeds": list(self.seeds),
            },
            "systems": [
                {"name": name, "kind": "rule", "rule": dict(rule), "settings": {}}
                for name, rule in self.systems.items()
            ],
            "tasks": tasks,
            "models": {"pair": "made", "target_parameters": 1000, "draft_parameters": 100},
            "versions": {"easd": "0.1.0"},
            "hardware": {"cpus": 2},
            "git": None,
        }
        return Run(
            folder=Path(folder),
            run=run,
            samples=_by_system(self.samples, _TABLES["samples"]),
            chunks=_by_system(self.units, _TABLES["chunks"]),
            tokens=_by_system(self.tokens, _TABLES["tokens"]),
            items=pa.Table.from_pylist(items, _TABLES["items"]),
        )


def _by_system(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    systems = dict.fromkeys(row["system"] for row in rows)
    parts = [
        pa.Table.from_pylist([row for row in rows if row["system"] == system], schema)
        for system in systems
    ]
    return pa.concat_tables(parts) if parts else schema.empty_table()


def graded(
    answers: Mapping[str, Sequence[Sequence[bool] | bool]],
    *,
    task: str = "sums",
    tasks: Mapping[str, int] | None = None,
    **values: Any,
) -> Evaluation:
    """Systems with their grades by item; a text is a function of system and grade.

    Args:
        answers: system -> grades of the items, of one seed.
        tasks: how many items were asked for, if more than there are grades.
    """
    count = max(map(len, answers.values()))
    made = Evaluation(
        systems={system: rule_of(system) for system in answers},
        tasks=tasks or {task: count},
        **values,
    )
    for system, grades in answers.items():
        for index, correct in enumerate(grades):
            right = [index, 2, 3]
            made.sample(
                system,
                task,
                index,
                correct=correct,
                token_ids=right if correct else [index, 9, 3],
                text=f"{index} two three" if correct else f"{index} nine three",
                answer="2" if correct else "9",
            )
        made.unit(system, task)
        made.unit(system, task, first=4)
    return made
