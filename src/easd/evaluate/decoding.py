"""Decodes one chunk of an evaluation, by a rule or reward-guided, and counts the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from easd.engine.generate import decode, describe_error, make_requests
from easd.engine.pair import Pair
from easd.engine.record import Columns, Recorder
from easd.engine.request import Row
from easd.engine.settings import Settings
from easd.evaluate.reward_guided import RewardGuided, Round, generate_reward_guided
from easd.evaluate.rewards import Scorer
from easd.runs.schema import PARTS
from easd.runs.tally import COUNTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The result of decoding some prompts.

    Attributes:
        texts: decoding's columns of the samples table, in the order of the prompts.
        timing: decoding's columns of the chunks table.
        tokens: rows of the tokens table, if recorded.
    """

    texts: list[dict[str, Any]]
    timing: dict[str, Any]
    tokens: Columns | None = None


def decode_by_rule(
    pair: Pair,
    prompts: Sequence[list[int]],
    settings: Settings,
    *,
    first: int,
    with_tokens: bool,
) -> Batch:
    """Decodes prompts with the settings' rule and request numbers from `first` on."""
    recorder = Recorder(settings.rule, with_tokens=with_tokens)
    numbers = range(first, first + len(prompts))
    requests = make_requests(pair, prompts, settings, numbers=numbers)
    failed: dict[int, Row] = {}
    for record in decode(
        pair, requests, settings, lambda row: failed.update({row.request.number: row})
    ):
        recorder.add(record)
    recorder.rows |= failed
    rows = [recorder.rows[first + place] for place in range(len(prompts))]
    return Batch(
        texts=[
            {
                "token_ids": row.new_ids,
                "finish_reason": row.finished,
                "prompt_tokens": len(row.request.prompt),
                **_counts(recorder, row),
                **_failure(row.error),
            }
            for row in rows
        ],
        timing=_timing(recorder),
        tokens=recorder.token_columns(),
    )


def decode_reward_guided(
    pair: Pair,
    prompts: Sequence[list[int]],
    settings: Settings,
    *,
    first: int,
    system: RewardGuided,
    scorer: Scorer,
) -> Batch:
    """Decodes prompts by reward-guided steps.

    Each token of the target counts as a block, and scoring as verification.
    """
    assert pair.draft is not None, "checked where the evaluation begins"
    rounds = _Rounds()
    texts = generate_reward_guided(
        pair.target,
        pair.draft,
        prompts,
        scorer,
        tokenizer=pair.tokenizer,
        system=system,
        settings=settings,
        numbers=range(first, first + len(prompts)),
        on_round=rounds.add,
    )
    found = []
    for text in sorted(texts, key=lambda text: text.number):
        counts = text.counts
        found.append(
            {
                "token_ids": text.token_ids,
                "finish_reason": text.finish_reason,
                "prompt_tokens": len(text.prompt_ids),
                "blocks": counts.target_tokens,
                "proposed": counts.draft_tokens,
                "examined": counts.draft_tokens,
                "accepted": counts.draft_kept,
                "penalised": 0,
                "steps": counts.steps_drafted,
                "rewritten": counts.steps_rewritten,
                **_failure(text.error),
            }
        )
    return Batch(texts=found, timing=rounds.timing())


@dataclass(slots=True)
class _Rounds:
    """Sums over the rounds of reward-guided decoding."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    draft_steps: int = 0
    target_steps: int = 0

    def add(self, one: Round) -> None:
        self.seconds["draft"] += one.seconds["draft"]
        self.seconds["verify"] += one.seconds["reward"]
        self.seconds["target"] += one.seconds["target"]
        self.draft_steps += max(len(step.drafted) for step in one.steps)
        self.target_steps += max(len(step.rewritten or ()) for step in one.steps)

    def timing(self) -> dict[str, Any]:
        forwards = {"target_steps": self.target_steps, "draft_steps": self.draft_steps}
        return forwards | _seconds(self.seconds)


def _failure(error: Exception | None) -> dict[str, Any]:
    """The columns of a text that failed, which counts as wrong."""
    if error is None:
        return {}
    why = f"decoding: {describe_error(error)}"
    return {"failure": why, "correct": False, "answer": None}


def _counts(recorder: Recorder, row: Row) -> dict[str, Any]:
    """The counts of a text; with the rule `draft` every token counts as proposed and accepted."""
    new = len(row.new_ids)
    if recorder.rule.models == "draft":
        return {"blocks": 0, "proposed": new, "examined": new, "accepted": new, "penalised": 0}
    found = recorder.of(row.request.number)
    counts = {name: getattr(found, name) for name in COUNTED}
    met = {f"over_{name}": count for name, count in (found.conditions or {}).items()}
    return {**counts, "gate_open": found.gate_open, **met}


def _timing(recorder: Recorder) -> dict[str, Any]:
    seconds = dict(recorder.seconds)
    forwards = {"target_steps": recorder.target_steps, "draft_steps": recorder.draft_steps}
    if recorder.rule.models == "draft":
        seconds |= {"draft": seconds["target"], "target": 0.0}
        forwards = {"target_steps": 0, "draft_steps": recorder.target_steps}
    return forwards | _seconds(seconds)


def _seconds(parts: dict[str, float]) -> dict[str, float]:
    named = {f"{part}_seconds": value for part, value in parts.items()}
    return {**named, "seconds": sum(parts.values())}
