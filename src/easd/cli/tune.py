"""`easd tune`: finds the best rule for a pair from reference texts, without decoding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
import torch
from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from easd.cli.options import OUTPUT, Options
from easd.cli.references import ReferenceOptions
from easd.diagnose.calibration_file import CalibrationFile, data_of, sampling
from easd.diagnose.tuning import Tuning, tune
from easd.diagnose.tuning_pass import read
from easd.diagnose.tuning_printing import answer, render
from easd.engine.models.slots import SlotModel
from easd.engine.pair import Pair, fingerprints
from easd.engine.settings import Settings
from easd.errors import ConfigError, visible
from easd.evaluate.config import StudyConfig
from easd.tasks import Task

_CONTEXT, _ROUNDS = 128, 20


def command(
    *,
    given: ReferenceOptions,
    out: Annotated[Path, Parameter(group=OUTPUT)] = Path("tuned.json"),
) -> None:
    """Find the best rule for a pair: the pool, EASD, or the target at its best temperature.

    Both models read written solutions once. Temperatures, powers, plausibility and the gate are
    fitted on some of the texts and judged on the others. The file says which rule to use, at which
    temperature, for --calibration.

    Args:
        out: The file to write.
    """
    check_free(given.decoding)
    study, task, pair = given.load()
    gamma = study.base.settings.gamma
    if gamma == "auto":
        raise ConfigError("gamma = 'auto' is chosen while decoding; forecasts need a number")
    found = tune(
        given.read(read, study, task, pair),
        gamma=gamma,
        unique_solution=task.unique_solution,
    )
    speeds = _speeds(found, pair)
    _keep(found, speeds, out, pair, study, task)
    if given.as_json:
        print(json.dumps({**found.to_dict(), "speeds": speeds}, indent=2))
    elif given.quiet:
        for line in answer(found, speeds):
            print(visible(line))
    else:
        render(found, speeds, Console())
    chosen = found.chosen
    at = f"temperature {chosen.temperature:g}"
    line = f"{out} holds {chosen.rule['name']} at {at}; use it with --calibration {out}"
    given.console.print(Text(visible(line)), soft_wrap=True)


def check_free(decoding: Options) -> None:
    """Refuses settings that tuning chooses."""
    for name in ("temperature", "draft_temperature"):
        if name in (decoding or {}):
            raise ConfigError(f"{name} is what tuning finds; leave it out")


@torch.inference_mode()
def _speeds(found: Tuning, pair: Pair) -> dict[str, float]:
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


def _keep(
    found: Tuning,
    speeds: Mapping[str, float],
    out: Path,
    pair: Pair,
    study: StudyConfig,
    task: Task,
) -> None:
    """Writes the rule to use, for --calibration."""
    chosen = found.chosen
    base: Settings = replace(study.base.settings, temperature=chosen.temperature)
    decoding = {"temperature": chosen.temperature}
    if chosen.draft_temperature is not None and chosen.rule["name"] != "easd":
        decoding["draft_temperature"] = chosen.draft_temperature
    CalibrationFile(
        kind="tuning",
        fields=dict(chosen.rule),
        pair=pair.name,
        fingerprints=fingerprints(pair),
        sampling=sampling(base),
        data=[data_of(task)],
        estimates={**found.to_dict(), "speeds": dict(speeds)},
        decoding=decoding,
    ).save(out)
