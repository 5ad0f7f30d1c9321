"""Columns of the public data sets, translated into the keys of a row.

Every function takes one row as `datasets` gives it and raises KeyError where a column is missing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

_GSM8K_ANSWER = re.compile(r"#### (.*)\s*\Z")
_FUNCTION_NAME = re.compile(r"^def\s+(\w+)", re.MULTILINE)


def math500(row: Mapping[str, Any]) -> dict[str, Any]:
    """HuggingFaceH4/MATH-500."""
    return {"id": row["unique_id"], **_only(row, "problem", "answer", "solution")}


def olympiadbench(row: Mapping[str, Any]) -> dict[str, Any]:
    """Hothan/OlympiadBench; several values of one answer are one gold answer, comma-separated."""
    return {
        "id": f"olympiad-{row['id']}",
        "problem": row["question"],
        "context": row["context"],
        "answer": ",".join(row["final_answer"] or []),
        "solution": "\n".join(row["solution"] or []),
        "error": row["error"],
    }


def aime24(row: Mapping[str, Any]) -> dict[str, Any]:
    """HuggingFaceH4/aime_2024; answers are written `073` there."""
    return {
        "id": f"aime24-{row['id']}",
        "problem": row["problem"],
        "answer": str(int(row["answer"])),
        "solution": row["solution"],
    }


def aime25(row: Mapping[str, Any]) -> dict[str, Any]:
    """math-ai/aime25."""
    return {"id": f"aime25-{row['id']}", **_only(row, "problem", "answer")}


def amc23(row: Mapping[str, Any]) -> dict[str, Any]:
    """math-ai/amc23."""
    return {
        "id": f"amc23-{row['id']}",
        "problem": row["question"],
        "answer": str(row["answer"]).removesuffix(".0"),
    }


def minerva(row: Mapping[str, Any]) -> dict[str, Any]:
    """math-ai/minervamath."""
    return {"problem": row["question"], "answer": row["answer"]}


def gsm8k(row: Mapping[str, Any]) -> dict[str, Any]:
    """openai/gsm8k; the last line of the written answer, `#### 18`, is the gold answer."""
    solution = row["answer"]
    found = _GSM8K_ANSWER.search(solution)
    answer = found[1].replace(",", "") if found else ""
    return {"problem": row["question"], "answer": answer, "solution": solution}


def svamp(row: Mapping[str, Any]) -> dict[str, Any]:
    """ChilleD/SVAMP; the story and the question stand in two columns."""
    return {
        "id": f"svamp-{row['ID']}",
        "problem": f"{row['Body'].strip()} {row['Question'].strip()}",
        "answer": str(row["Answer"]).removesuffix(".0"),
    }


def limr(row: Mapping[str, Any]) -> dict[str, Any]:
    """GAIR/LIMR."""
    return {"problem": row["prompt"], "answer": row["answer"]}


def limo(row: Mapping[str, Any]) -> dict[str, Any]:
    """GAIR/LIMO."""
    return {"problem": row["question"], **_only(row, "answer", "solution")}


def gpqa(row: Mapping[str, Any]) -> dict[str, Any]:
    """Idavidrein/gpqa; the order of the options is drawn from the record's id."""
    right = row["Correct Answer"].strip()
    options = [right, *(row[f"Incorrect Answer {i}"].strip() for i in (1, 2, 3))]
    random.Random(row["Record ID"]).shuffle(options)
    return {
        "id": row["Record ID"],
        "problem": row["Question"].strip(),
        "choices": options,
        "answer": ascii_uppercase[options.index(right)],
    }


def mmlu(row: Mapping[str, Any]) -> dict[str, Any]:
    """cais/mmlu; the answer is an index."""
    return {
        "problem": row["question"],
        "choices": row["choices"],
        "answer": ascii_uppercase[row["answer"]],
    }


def arc(row: Mapping[str, Any]) -> dict[str, Any]:
    """allenai/ai2_arc; some rows call their options 1 to 4."""
    labels, key = row["choices"]["label"], row["answerKey"]
    return {
        "id": row["id"],
        "problem": row["question"],
        "choices": row["choices"]["text"],
        "answer": ascii_uppercase[labels.index(key)] if key in labels else "",
    }


def nq_open(row: Mapping[str, Any]) -> dict[str, Any]:
    """google-research-datasets/nq_open."""
    return {"problem": row["question"], "answers": row["answer"]}


def triviaqa(row: Mapping[str, Any]) -> dict[str, Any]:
    """mandarjoshi/trivia_qa; an entity's other names are right too."""
    answer = row["answer"]
    return {
        "id": row["question_id"],
        "problem": row["question"],
        "answers": [answer["value"], *answer["aliases"]],
    }


def humaneval(row: Mapping[str, Any]) -> dict[str, Any]:
    """openai/openai_humaneval."""
    return {
        "id": row["task_id"],
        "answer": row["canonical_solution"],
        **_only(row, "prompt", "test", "entry_point"),
    }


def mbpp(row: Mapping[str, Any]) -> dict[str, Any]:
    """google-research-datasets/mbpp, sanitized; the function to write is the one tests call."""
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


def _only(row: Mapping[str, Any], *columns: str) -> dict[str, Any]:
    return {column: row[column] for column in columns}
