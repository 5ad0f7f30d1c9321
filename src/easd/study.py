"""A whole study of a pair: tunes on some items of a task, judges on the others, and reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easd.diagnose.calibration_file import CalibrationFile, read_calibration
from easd.diagnose.candidates import TARGET
from easd.diagnose.references import references
from easd.diagnose.tuned_file import forecast_speeds, leave_to_tuning, tuned_file
from easd.diagnose.tuning import Tuning, tune
from easd.diagnose.tuning_pass import read
from easd.engine.pair import Pair, fingerprints
from easd.errors import ConfigError
from easd.evaluate.config import StudyConfig
from easd.evaluate.engine import Evaluation
from easd.evaluate.grid import parse_task
from easd.evaluate.prompting import encode_task
from easd.report import write_report
from easd.runs import open_run
from easd.tasks import Task

ENOUGH_TO_TUNE = 200


def study(
    pair: Pair,
    task: Task,
    out: str | Path,
    *,
    tune_on: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Finds out whether any rule helps a pair on a task; returns the path of the report.

    Temperatures, powers and gates are tuned on the first items, from their written solutions. What
    was found decodes the other items, beside EASD, lossless speculation, and the target at its best
    temperature and at 1. A study that was stopped continues.

    Args:
        pair: target and draft, as `load_pair` or `load_models` returns them.
        task: as `easd.tasks.load_task` returns it.
        out: folder of the study, for tuned.json, run/ and report/.
        tune_on: number of items to tune on; a third of them by default, and at most 200.
        settings: as in a config file, such as {"gamma": 6, "seeds": [0, 1]}.

    Raises:
        EasdError: A setting does not fit, the task has no written solutions, or the folder holds
            another study.
    """
    values = {**(settings or {}), "tasks": [{"name": task.name, "limit": len(task.items)}]}
    tune_on = check(values, task, tune_on)
    own = Study(pair=pair, task=task, tune_on=tune_on, out=Path(out), values=values)
    if not own.is_tuned:
        own.tune()
    own.evaluation().run()
    return own.report()


def check(values: Mapping[str, Any], task: Task, tune_on: int | None) -> int:
    """Returns the number of items to tune on; the arguments are those of `study`.

    Raises:
        ConfigError: The number leaves none to judge on, or a setting is what a study finds.
    """
    leave_to_tuning(values, "systems", "baselines")
    count = len(task.items)
    fit = min(ENOUGH_TO_TUNE, count // 3) if tune_on is None else tune_on
    if not 0 < fit < count:
        raise ConfigError(f"tune_on = {fit} of {count} items; use at least 1 and leave at least 1")
    return fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """The steps of a study, in the order of the methods.

    Attributes:
        pair: both models.
        task: its first `tune_on` items are tuned on, the others judged on.
        out: folder for tuned.json, run/ and report/.
        values: settings by their names in a config file; `tasks` names the one task.
    """

    pair: Pair
    task: Task
    tune_on: int
    out: Path
    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)

    @property
    def file(self) -> Path:
        """What tuning found, for --calibration."""
        return self.out / "tuned.json"

    @property
    def is_tuned(self) -> bool:
        """Whether an earlier call has tuned."""
        return self.file.exists()

    @property
    def tuned_on(self) -> Task:
        """The items to tune on."""
        return self.task.part(0, self.tune_on)

    @property
    def judged_on(self) -> Task:
        """The other items."""
        return self.task.part(self.tune_on, len(self.task.items))

    def tune(
        self, on_step: Callable[[int, int], None] = lambda done, total: None
    ) -> tuple[Tuning, dict[str, float]]:
        """Tunes on the first items; returns what it found, and each candidate's speed here.

        Args:
            on_step: called with the texts that were read and their number.

        Raises:
            EasdError: The first items have no written solutions, or another does not fit the
                context window.
        """
        base = StudyConfig.from_dict(self.values).base
        # Tuning can take long; what would stop the evaluation after it is found before.
        longest = base.settings.max_new_tokens or self.task.max_new_tokens
        encode_task(self.judged_on, self.pair, base.chat, longest)
        texts = references(self.tuned_on, self.pair, base.chat)
        found = tune(
            read(self.pair, texts, base.settings, on_step),
            gamma=base.settings.fixed_gamma,
            unique_solution=self.task.unique_solution,
        )
        speeds = forecast_speeds(found, self.pair)
        tuned_file(found, speeds, self.pair, base.settings, self.tuned_on).save(self.file)
        return found, speeds

    def evaluation(self) -> Evaluation:
        """Returns the evaluation on the other items, to be run.

        Raises:
            ConfigError: The folder's tuning is of other models, other settings or other items.
        """
        tuned = read_calibration(self.file)
        if (used := sum(each["items"] for each in tuned.data)) != self.tune_on:
            raise ConfigError(
                f"{self.file} was tuned on {used} items, not {self.tune_on}; choose another --out"
            )
        spec, others = parse_task(self.values["tasks"][0]), len(self.task.items) - self.tune_on
        judged = {**spec.to_dict(), "first": spec.first + self.tune_on, "limit": others}
        values = {**tuned.decoding, **self.values, "tasks": [judged]}
        values |= {"systems": systems(tuned), "baselines": False}
        config = StudyConfig.from_dict(values)
        tuned.check(fingerprints(self.pair), config.base.settings)
        fitted = tuned.fitted_on([self.judged_on])
        return Evaluation(config, self.pair, [self.judged_on], self.out / "run", fitted)

    def report(self) -> Path:
        """Writes the report and returns the path of its page."""
        run = open_run(self.out / "run", "evaluation")
        return write_report([run], self.out / "report", baseline=TARGET)


def systems(tuned: CalibrationFile) -> list[dict[str, Any]]:
    """Returns the systems that a study compares, from what tuning estimated.

    These are the target at its best temperature and at 1, lossless speculation at the former, and
    the best candidates of EASD and of the pool, whether or not tuning recommends them.
    """
    candidates = {each["name"]: each for each in tuned.estimates["candidates"]}
    best = {name: candidates[TARGET][name] for name in ("temperature", "draft_temperature")}
    compared = [
        {"name": TARGET, "rule": "target", "temperature": best["temperature"]},
        {"name": "speculative at its best", "rule": "speculative", **best},
        {"name": "target, T = 1", "rule": "target", "temperature": 1.0},
    ]
    for kind in ("easd", "pool"):
        own = [each for each in candidates.values() if each["rule"]["name"].startswith(kind)]
        highest = max(own, key=lambda each: each["right"]["value"])
        names = ("name", "rule", "temperature", "draft_temperature")
        compared.append({name: highest[name] for name in names})
    return compared
