"""The known tasks, each a function that translates a row of the hub's data set to our keys.

A function takes one row as `datasets` yields it and raises KeyError where a column is missing. Its
name is the task's, and the first line of its docstring is the summary in listings.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

from easd.pairs import lab

Kind = Literal["mathematics", "choice", "exact", "completion", "program", "lab"]
Columns = Mapping[str, Any]
Keys = dict[str, Any]
Translation = Callable[[Columns], Keys]

LAB_COUNT = 1000

_GSM8K_ANSWER = re.compile(r"#### (.*)\s*\Z")
_FUNCTION_NAME = re.compile(r"^def\s+(\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """A task's description, known before it is loaded.

    Attributes:
        kind: How items are prompted and graded.
        hub: Id on the hub; None for generated problems and for a user's file.
        translate: Turns the hub's columns into the keys of a row.
        count: Number of items, for forecasts; None where it is not known.
        files: File names to look for in a data folder, in this order.
        max_new_tokens: Usual length budget.
    """

    summary: str
    kind: Kind
    hub: str | None = None
    config: str | None = None
    split: str = "test"
    count: int | None = None
    translate: Translation | None = None
    files: tuple[str, ...] = ()
    licence: str | None = None
    max_new_tokens: int = 2048


TASKS: dict[str, TaskInfo] = {}


def _hub(
    kind: Kind,
    hub: str,
    *,
    name: str | None = None,
    summary: str | None = None,
    also: str | None = None,
    **fields: Any,
) -> Callable[[Translation], Translation]:
    """Registers a task of the hub; `also` is another name of its file in a data folder."""

    def register(translate: Translation) -> Translation:
        task = name or translate.__name__.replace("_", "-")
        files = (f"{task.replace('-', '_')}.jsonl", also, f"{task}.jsonl")
        TASKS[task] = TaskInfo(
            summary=summary or (translate.__doc__ or "").splitlines()[0].rstrip("."),
            kind=kind,
            hub=hub,
            translate=translate,
            files=tuple(dict.fromkeys(file for file in files if file)),
            **fields,
        )
        return translate

    return register


@_hub("mathematics", "HuggingFaceH4/MATH-500", count=500, licence="MIT")
def math500(row: Columns) -> Keys:
    """500 problems of MATH's test set."""
    return {"id": row["unique_id"], **_only(row, "problem", "answer", "solution")}


@_hub(
    "mathematics",
    "Hothan/OlympiadBench",
    count=674,
    config="OE_TO_maths_en_COMP",
    split="train",
    licence="MIT",
    max_new_tokens=4096,
)
def olympiadbench(row: Columns) -> Keys:
    """Olympiad mathematics in English, text only, answers that can be checked."""
    # Several values of one answer are one gold answer, separated by commas.
    return {
        "id": f"olympiad-{row['id']}",
        "problem": row["question"],
        "context": row["context"],
        "answer": ",".join(row["final_answer"] or []),
        "solution": "\n".join(row["solution"] or []),
        "error": row["error"],
    }


@_hub(
    "mathematics",
    "HuggingFaceH4/aime_2024",
    count=30,
    split="train",
    licence="none stated",
    max_new_tokens=4096,
)
def aime24(row: Columns) -> Keys:
    """30 problems of AIME 2024."""
    # Answers are written `073` there.
    return {
        "id": f"aime24-{row['id']}",
        "problem": row["problem"],
        "answer": str(int(row["answer"])),
        "solution": row["solution"],
    }


@_hub("mathematics", "math-ai/aime25", count=30, licence="Apache-2.0", max_new_tokens=4096)
def aime25(row: Columns) -> Keys:
    """30 problems of AIME 2025."""
    return {"id": f"aime25-{row['id']}", **_only(row, "problem", "answer")}


@_hub("mathematics", "math-ai/amc23", count=40)
def amc23(row: Columns) -> Keys:
    """40 problems of AMC 2023."""
    return {
        "id": f"amc23-{row['id']}",
        "problem": row["question"],
        "answer": str(row["answer"]).removesuffix(".0"),
    }


@_hub("mathematics", "math-ai/minervamath", count=272)
def minerva(row: Columns) -> Keys:
    """272 undergraduate problems of science (Minerva)."""
    return {"problem": row["question"], "answer": row["answer"]}


@_hub("mathematics", "openai/gsm8k", count=1319, config="main", licence="MIT", max_new_tokens=512)
def gsm8k(row: Columns) -> Keys:
    """Grade-school word problems."""
    # The written answer ends with the line `#### 18`.
    solution = row["answer"]
    found = _GSM8K_ANSWER.search(solution)
    answer = found[1].replace(",", "") if found else ""
    return {"problem": row["question"], "answer": answer, "solution": solution}


@_hub(
    "mathematics",
    "ChilleD/SVAMP",
    count=1000,
    split="train+test",
    licence="MIT",
    max_new_tokens=512,
)
def svamp(row: Columns) -> Keys:
    """1,000 word problems of one step, varied to mislead."""
    return {
        "id": f"svamp-{row['ID']}",
        "problem": f"{row['Body'].strip()} {row['Question'].strip()}",
        "answer": str(row["Answer"]).removesuffix(".0"),
    }


@_hub("mathematics", "GAIR/LIMR", count=1389, split="train", licence="none stated")
def limr(row: Columns) -> Keys:
    """1,389 competition problems (LIMR), for calibration."""
    return {"problem": row["prompt"], "answer": row["answer"]}


@_hub(
    "mathematics",
    "GAIR/LIMO",
    count=817,
    split="train",
    licence="MIT",
    max_new_tokens=4096,
    also="limo_v2_40.jsonl",
)
def limo(row: Columns) -> Keys:
    """Competition problems with long solutions (LIMO), for calibration."""
    return {"problem": row["question"], **_only(row, "answer", "solution")}


@_hub(
    "choice",
    "Idavidrein/gpqa",
    count=198,
    config="gpqa_diamond",
    split="train",
    licence="CC BY 4.0",
    name="gpqa-diamond",
)
def gpqa(row: Columns) -> Keys:
    """198 graduate questions of science; the hub asks for an account."""
    # The record's id decides the order of the options.
    right = row["Correct Answer"].strip()
    options = [right, *(row[f"Incorrect Answer {i}"].strip() for i in (1, 2, 3))]
    random.Random(row["Record ID"]).shuffle(options)
    return {
        "id": row["Record ID"],
        "problem": row["Question"].strip(),
        "choices": options,
        "answer": ascii_uppercase[options.index(right)],
    }


@_hub(
    "choice", "cais/mmlu", config="all", licence="MIT", max_new_tokens=1024, also="mmlu_1000.jsonl"
)
def mmlu(row: Columns) -> Keys:
    """Questions of 57 subjects."""
    return {
        "problem": row["question"],
        "choices": row["choices"],
        "answer": ascii_uppercase[row["answer"]],
    }


@_hub(
    "choice",
    "allenai/ai2_arc",
    config="ARC-Challenge",
    licence="CC BY-SA 4.0",
    max_new_tokens=1024,
    name="arc-challenge",
    summary="School science, hard part",
)
@_hub(
    "choice",
    "allenai/ai2_arc",
    config="ARC-Easy",
    licence="CC BY-SA 4.0",
    max_new_tokens=1024,
    name="arc-easy",
    summary="School science, easy part",
)
def arc(row: Columns) -> Keys:
    """School science; some rows call their options 1 to 4."""
    labels, key = row["choices"]["label"], row["answerKey"]
    return {
        "id": row["id"],
        "problem": row["question"],
        "choices": row["choices"]["text"],
        "answer": ascii_uppercase[labels.index(key)] if key in labels else "",
    }


@_hub(
    "exact",
    "google-research-datasets/nq_open",
    count=3610,
    split="validation",
    licence="CC BY-SA 3.0",
    max_new_tokens=64,
    also="nq_open_dev.jsonl",
)
def nq_open(row: Columns) -> Keys:
    """Questions asked of a search engine, short answers."""
    return {"problem": row["question"], "answers": row["answer"]}


@_hub(
    "exact",
    "mandarjoshi/trivia_qa",
    count=11_313,
    config="unfiltered.nocontext",
    split="validation",
    max_new_tokens=64,
)
def triviaqa(row: Columns) -> Keys:
    """Trivia questions, short answers."""
    # An entity's other names are right too.
    answer = row["answer"]
    return {
        "id": row["question_id"],
        "problem": row["question"],
        "answers": [answer["value"], *answer["aliases"]],
    }


@_hub("completion", "openai/openai_humaneval", count=164, licence="MIT", max_new_tokens=1024)
def humaneval(row: Columns) -> Keys:
    """164 Python functions to complete, graded by running tests."""
    return {
        "id": row["task_id"],
        "answer": row["canonical_solution"],
        **_only(row, "prompt", "test", "entry_point"),
    }


@_hub(
    "program",
    "google-research-datasets/mbpp",
    count=257,
    config="sanitized",
    licence="CC BY 4.0",
    max_new_tokens=1024,
    also="mbpp_sanitized.jsonl",
)
def mbpp(row: Columns) -> Keys:
    """257 short Python functions to write (sanitized), graded by running tests."""
    # The function to write is the one that the tests call.
    names = _FUNCTION_NAME.findall(row["code"])
    tests = "\n".join(row["test_list"])
    called = [name for name in names if re.search(rf"\b{name}\s*\(", tests)]
    return {
        "id": f"mbpp-{row['task_id']}",
        "problem": row["prompt"],
        "answer": row["code"],
        "entry_point": called[-1] if called else names[-1],
        **_only(row, "test_list", "test_imports"),
    }


def _only(row: Columns, *columns: str) -> Keys:
    return {column: row[column] for column in columns}


for _name, _recipe in lab.RECIPES.items():
    TASKS[_name] = TaskInfo(
        summary=f"Generated arithmetic: {_recipe.summary}",
        kind="lab",
        count=LAB_COUNT,
        licence="Apache-2.0",
        max_new_tokens=lab.MAX_NEW_TOKENS,
    )
TASKS["file"] = TaskInfo(
    summary="Your own problems: one JSON object a line with problem, answer, maybe solution",
    kind="mathematics",
)
