"""What tuning found, as a file for --calibration, and forecasts of its speed on this machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch

from easd.diagnose.calibration_file import CalibrationFile, data_of, sampling
from easd.diagnose.tuning import Tuning
from easd.engine.models.slots import SlotModel
from easd.engine.pair import Pair, fingerprints
from easd.engine.settings import Settings
from easd.errors import ConfigError
from easd.tasks import Task

_CONTEXT, _ROUNDS = 128, 20
_FOUND = ("temperature", "draft_temperature")


def leave_to_tuning(given: Collection[str], *more: str) -> None:
    """Refuses the names of settings that tuning finds: temperatures, and `more`."""
    for name in (*_FOUND, *more):
        if name in given:
            raise ConfigError(f"{name} is what tuning finds; leave it out")


@torch.inference_mode()
def forecast_speeds(found: Tuning, pair: Pair) -> dict[str, float]:
    """Forecasts each candidate's speed for one text on this machine, over the target alone."""
    assert pair.draft is not None, "tuning compares two models"
    gamma = found.gamma
    context = min(_CONTEXT, (pair.context_window or _CONTEXT) - gamma - 2)
    draft, target = SlotModel(pair.draft, 1, pair.vocab_size), SlotModel(pair.target, 1)
    forwards = ((draft, 1), (target, 1), (target, gamma + 1))
    seconds = np.full(len(forwards), np.inf)
    for model in (draft, target):
        model.prefill(0, [[0] * context])
    # The forwards take turns, and the minimum counts, as other load only adds time.
    for _ in range(_ROUNDS):
        for place, (model, count) in enumerate(forwards):
            tokens = torch.zeros(1, count, dtype=torch.long, device=model.device)
            begun = perf_counter()
            model.forward(tokens).sum().item()
            seconds[place] = min(seconds[place], perf_counter() - begun)
    drafting, alone, scoring = seconds.tolist()

    def speed(rule: Mapping[str, object], tokens: float) -> float:
        asked = gamma + (rule["name"] != "speculative")  # The others ask at the bonus position too.
        return tokens * alone / (asked * drafting + scoring)

    return {each.name: speed(each.rule, each.tokens_per_forward) for each in found.candidates}


def tuned_file(
    found: Tuning, speeds: Mapping[str, float], pair: Pair, settings: Settings, task: Task
) -> CalibrationFile:
    """Returns the rule to use, for --calibration, with everything that was estimated."""
    chosen = found.chosen
    decoding = {"temperature": chosen.temperature}
    if chosen.draft_temperature is not None and chosen.rule["name"] != "easd":
        decoding["draft_temperature"] = chosen.draft_temperature
    return CalibrationFile(
        kind="tuning",
        fields=dict(chosen.rule),
        pair=pair.name,
        fingerprints=fingerprints(pair),
        sampling=sampling(replace(settings, temperature=chosen.temperature)),
        data=[data_of(task)],
        estimates={**found.to_dict(), "speeds": dict(speeds)},
        decoding=decoding,
    )
