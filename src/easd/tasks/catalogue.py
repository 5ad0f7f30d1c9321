"""The known tasks: one entry says where a set comes from and how it is asked and graded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from easd.pairs import lab
from easd.tasks import hub

Kind = Literal["mathematics", "choice", "exact", "completion", "program", "lab"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """What is known of a task before it is loaded.

    Attributes:
        summary: One line for listings.
        kind: How items are asked and graded.
        hub: Id on the hub; None for generated problems and for a user's own file.
        config: The hub set's configuration.
        split: The hub set's split.
        translate: The hub's columns into the keys of a row.
        files: Names a local copy may have in a data folder, first found first taken.
        licence: As far as it is known.
        max_new_tokens: Usual length budget.
    """

    summary: str
    kind: Kind
    hub: str | None = None
    config: str | None = None
    split: str = "test"
    translate: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    files: tuple[str, ...] = ()
    licence: str | None = None
    max_new_tokens: int = 2048


TASKS: Mapping[str, TaskInfo] = {
    "math500": TaskInfo(
        summary="500 problems of MATH's test set",
        kind="mathematics",
        hub="HuggingFaceH4/MATH-500",
        translate=hub.math500,
        files=("math500.jsonl",),
        licence="MIT",
    ),
    "olympiadbench": TaskInfo(
        summary="olympiad mathematics in English, text only, answers that can be checked",
        kind="mathematics",
        hub="Hothan/OlympiadBench",
        config="OE_TO_maths_en_COMP",
        split="train",
        translate=hub.olympiadbench,
        files=("olympiadbench.jsonl",),
        licence="MIT",
        max_new_tokens=4096,
    ),
    "aime24": TaskInfo(
        summary="30 problems of AIME 2024",
        kind="mathematics",
        hub="HuggingFaceH4/aime_2024",
        split="train",
        translate=hub.aime24,
        files=("aime24.jsonl",),
        licence="none stated",
        max_new_tokens=4096,
    ),
    "aime25": TaskInfo(
        summary="30 problems of AIME 2025",
        kind="mathematics",
        hub="math-ai/aime25",
        translate=hub.aime25,
        files=("aime25.jsonl",),
        licence="Apache-2.0",
        max_new_tokens=4096,
    ),
    "amc23": TaskInfo(
        summary="40 problems of AMC 2023",
        kind="mathematics",
        hub="math-ai/amc23",
        translate=hub.amc23,
        files=("amc23.jsonl",),
    ),
    "minerva": TaskInfo(
        summary="272 undergraduate problems of science (Minerva)",
        kind="mathematics",
        hub="math-ai/minervamath",
        translate=hub.minerva,
        files=("minerva.jsonl",),
    ),
    "gsm8k": TaskInfo(
        summary="grade-school word problems",
        kind="mathematics",
        hub="openai/gsm8k",
        config="main",
        translate=hub.gsm8k,
        files=("gsm8k.jsonl",),
        licence="MIT",
        max_new_tokens=512,
    ),
    "svamp": TaskInfo(
        summary="1,000 word problems of one step, varied to mislead",
        kind="mathematics",
        hub="ChilleD/SVAMP",
        split="train+test",
        translate=hub.svamp,
        files=("svamp.jsonl",),
        licence="MIT",
        max_new_tokens=512,
    ),
    "limr": TaskInfo(
        summary="1,389 competition problems (LIMR), for calibration",
        kind="mathematics",
        hub="GAIR/LIMR",
        split="train",
        translate=hub.limr,
        files=("limr.jsonl",),
        licence="none stated",
    ),
    "limo": TaskInfo(
        summary="competition problems with long solutions (LIMO), for calibration",
        kind="mathematics",
        hub="GAIR/LIMO",
        split="train",
        translate=hub.limo,
        files=("limo.jsonl", "limo_v2_40.jsonl"),
        licence="MIT",
        max_new_tokens=4096,
    ),
    "gpqa-diamond": TaskInfo(
        summary="198 graduate questions of science; the hub asks for an account",
        kind="choice",
        hub="Idavidrein/gpqa",
        config="gpqa_diamond",
        split="train",
        translate=hub.gpqa,
        files=("gpqa_diamond.jsonl", "gpqa-diamond.jsonl"),
        licence="CC BY 4.0",
    ),
    "mmlu": TaskInfo(
        summary="questions of 57 subjects",
        kind="choice",
        hub="cais/mmlu",
        config="all",
        translate=hub.mmlu,
        files=("mmlu.jsonl", "mmlu_1000.jsonl"),
        licence="MIT",
        max_new_tokens=1024,
    ),
    "arc-easy": TaskInfo(
        summary="school science, easy part",
        kind="choice",
        hub="allenai/ai2_arc",
        config="ARC-Easy",
        translate=hub.arc,
        files=("arc_easy.jsonl", "arc-easy.jsonl"),
        licence="CC BY-SA 4.0",
        max_new_tokens=1024,
    ),
    "arc-challenge": TaskInfo(
        summary="school science, hard part",
        kind="choice",
        hub="allenai/ai2_arc",
        config="ARC-Challenge",
        translate=hub.arc,
        files=("arc_challenge.jsonl", "arc-challenge.jsonl"),
        licence="CC BY-SA 4.0",
        max_new_tokens=1024,
    ),
    "nq-open": TaskInfo(
        summary="questions asked of a search engine, short answers",
        kind="exact",
        hub="google-research-datasets/nq_open",
        split="validation",
        translate=hub.nq_open,
        files=("nq_open.jsonl", "nq_open_dev.jsonl", "nq-open.jsonl"),
        licence="CC BY-SA 3.0",
        max_new_tokens=64,
    ),
    "triviaqa": TaskInfo(
        summary="trivia questions, short answers",
        kind="exact",
        hub="mandarjoshi/trivia_qa",
        config="unfiltered.nocontext",
        split="validation",
        translate=hub.triviaqa,
        files=("triviaqa.jsonl",),
        max_new_tokens=64,
    ),
    "humaneval": TaskInfo(
        summary="164 Python functions to complete, graded by running tests",
        kind="completion",
        hub="openai/openai_humaneval",
        translate=hub.humaneval,
        files=("humaneval.jsonl",),
        licence="MIT",
        max_new_tokens=1024,
    ),
    "mbpp": TaskInfo(
        summary="257 short Python functions to write (sanitized), graded by running tests",
        kind="program",
        hub="google-research-datasets/mbpp",
        config="sanitized",
        translate=hub.mbpp,
        files=("mbpp.jsonl", "mbpp_sanitized.jsonl"),
        licence="CC BY 4.0",
        max_new_tokens=1024,
    ),
    **{
        name: TaskInfo(
            summary=f"generated arithmetic: {recipe.summary}",
            kind="lab",
            licence="Apache-2.0",
            max_new_tokens=lab.MAX_NEW_TOKENS,
        )
        for name, recipe in lab.RECIPES.items()
    },
    "file": TaskInfo(
        summary="your own problems: one JSON object a line with problem, answer, maybe solution",
        kind="mathematics",
    ),
}
