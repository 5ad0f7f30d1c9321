"""`easd reproduce`: the paper's experiments, on its models or on others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from easd.cli.calibrate import calibration_config, calibration_file
from easd.cli.dry_run import Machine, check_memory, forecast
from easd.cli.endpoint_options import OfEndpoint, ServerOptions, given_of
from easd.cli.grid_options import (
    GridOptions,
    OfGrid,
    decode_here,
    decode_there,
    load_tasks,
    watch,
)
from easd.cli.options import OUTPUT, RULE
from easd.cli.preset_grid import MODELS, PresetGrid, lab_task
from easd.cli.run_summary import say_failures, shown_text
from easd.cli.sections import keep, show
from easd.diagnose.calibration import calibrate
from easd.diagnose.calibration_file import CalibrationFile, read_calibration
from easd.engine.pair import Pair, fingerprints
from easd.errors import ConfigError, EasdError
from easd.evaluate import presets
from easd.evaluate.config import REWARD_GUIDED, StudyConfig
from easd.evaluate.engine import Evaluation
from easd.evaluate.grid import parse_task
from easd.pairs.from_config import load_with_status
from easd.presets import PRESETS, preset
from easd.report.reproduced import reproduced
from easd.runs import open_run
from easd.tasks import Task

_NAMES = "; ".join(f"{name}: {preset(name).title}" for name in PRESETS) + "."


def command(
    name: Annotated[str, Parameter(help=_NAMES)],
    /,
    *,
    asked: GridOptions | None = None,
    first: Annotated[int | None, OfGrid(metavar="N")] = None,
    rate: Annotated[float | None, Parameter(group=RULE)] = None,
    reward_model: Annotated[str | None, Parameter(group=RULE)] = None,
    endpoint: Annotated[list[str] | None, OfEndpoint(metavar="[SYSTEM=]URL")] = None,
    server: ServerOptions | None = None,
    machine: Machine | None = None,
    out: Annotated[
        Path | None, Parameter(group=OUTPUT, show_default="runs/reproduce/ and the name")
    ] = None,
) -> None:
    """Run an experiment of the paper, and print its results beside the reported ones.

    The threshold is calibrated as in the paper, the systems decode the same problems, and every
    difference comes with what a run of this size can detect. Without options the paper's models
    decode the paper's tasks at temperature 0.7, which takes GPUs: see --dry-run. A `lab` pair
    decodes its own task. A run that was stopped continues.

    Args:
        first: Decode the first N items of each task only.
        rate: Find the tau_h at which the gate opens at this share of positions, instead of the
            paper's rule.
        reward_model: Folder or hub id of the reward model of `rsd`, which is left out without one.
        endpoint: Have this OpenAI-compatible server decode, instead of a pair. SYSTEM=URL is the
            server of one system, such as draft=http://127.0.0.1:8001/v1; may be repeated.
        out: Folder of the results, with one folder for each pair of models if there are several.
    """
    asked, machine = asked or GridOptions(), machine or Machine()
    grid = PresetGrid(
        preset=preset(name),
        asked=asked,
        first=first,
        rate=rate,
        reward_model=reward_model,
        endpoint=tuple(endpoint or ()),
        server=given_of(server),
    )
    folder = out or Path("runs/reproduce") / name
    for models in grid.models:
        if machine.dry_run:
            forecast(grid.preset, grid.values(models), machine)
            continue
        Reproduction(
            grid=grid,
            models=models,
            folder=folder / _slug(models) if len(grid.models) > 1 else folder,
            console=Console(stderr=True, quiet=asked.quiet),
        ).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """A preset with one pair of models, or on servers, in a folder."""

    grid: PresetGrid
    models: Mapping[str, Any]
    folder: Path
    console: Console

    def run(self) -> None:
        """Decodes what is missing, and prints the results.

        Raises:
            EasdError: Models, tasks or settings cannot be used; finished texts stay.
        """
        given = self.grid.asked.calibration
        calibrated = read_calibration(given) if given else None
        if self.grid.endpoint:
            self._decode_there(calibrated)
        else:
            self._decode_here(calibrated)
        run = open_run(self._run, "evaluation")
        section = reproduced(run, self.grid.preset)
        page = keep(section, self.folder)
        show(section, Console())
        self._say(f"this is in {page} too; next: easd report {self._run}")
        say_failures(run, self.console)

    @property
    def _run(self) -> Path:
        return self.folder / "run"

    def _say(self, line: str, style: str = "") -> None:
        self.console.print(shown_text(line, style), soft_wrap=True)

    def _decode_there(self, calibrated: CalibrationFile | None) -> None:
        values = self.grid.values(self.models, _tau_h(calibrated))
        self._left_out()
        if calibrated is None:
            self._say(
                "a server shows no entropies to calibrate on: easd has its default tau_h of 1.5; "
                "see --calibration"
            )
        decode_there(
            values,
            self._run,
            self.console,
            calibrated,
            allow_code_execution=self.grid.asked.allow_code_execution,
        )

    def _decode_here(self, calibrated: CalibrationFile | None) -> None:
        study = StudyConfig.from_dict(self.grid.values(self.models))
        check_memory(study.base)
        with _way_out("or leave it out: --task names the tasks to decode"):
            allow = self.grid.asked.allow_code_execution
            tasks = load_tasks(study, self.console, allow_code_execution=allow)
        fitting = self._fitting() if calibrated is None else None
        pair = load_with_status(study.base, self.console)
        left_out = self._left_out(pair)
        self.folder.mkdir(parents=True, exist_ok=True)
        if fitting is not None:
            calibrated = self._calibrate(*fitting, pair)
        if calibrated is not None and not self.grid.asked.force:
            calibrated.check(fingerprints(pair), study.base.settings)
        values = self.grid.values(self.models, _tau_h(calibrated), left_out)

        def with_control() -> list[Any]:
            first = open_run(self._run, "evaluation")
            return [*values["systems"], presets.matched_refusal(first, {})]

        then = with_control if self.grid.preset.random_refusal else None
        decode_here(values, pair, tasks, self._run, self.console, calibrated, then)

    def _left_out(self, pair: Pair | None = None) -> list[str]:
        """Names the systems of the preset that cannot be decoded, and says why."""
        why = {}
        if pair is None:
            why[REWARD_GUIDED] = "a server does not score steps"
            if self.grid.preset.random_refusal:
                why["random refusal"] = "a server does not say how often its gate opens"
        elif pair.draft_tokenizer is not None:
            why["draft"] = "its tokenizer is another one; decode it as the target of another run"
            why[REWARD_GUIDED] = "the draft's tokenizer is another one"
        elif self.grid.rewards_of(self.models) is None:
            why[REWARD_GUIDED] = (
                "it scores steps with a reward model, and these models have none (--reward-model)"
            )
        known = [*self.grid.preset.grid.get("systems", ()), "random refusal"]
        for name in why:
            if name in known:
                self._say(f"{name} is left out: {why[name]}", "yellow")
        return list(why)

    def _fitting(self) -> tuple[StudyConfig, Task] | None:
        """The evaluation and the task on which the threshold is found; None if none is needed."""
        preset = self.grid.preset
        if preset.sweep and self.grid.rate_of(self.models) is None:
            return None
        own, spec = lab_task(self.models), parse_task(preset.calibrate)
        task = self.grid.with_data(spec.to_dict())
        if own is not None:
            task = {"name": own, "split": "calibration", "limit": spec.limit}
        usual = {"coupling": None, "batch_size": 16, "chunk": 64}
        values = {**self.grid.values(self.models), **usual, **(self.grid.asked.decoding or {})}
        study = calibration_config({**values, "tasks": [task]}, {})
        with _way_out("the threshold is found on it; --calibration FILE gives one"):
            (loaded,) = load_tasks(study, self.console)
        return study, loaded

    def _calibrate(self, study: StudyConfig, task: Task, pair: Pair) -> CalibrationFile:
        """Finds the threshold, or reads the one that an earlier call has found."""
        file, folder = self.folder / "calibration.json", self.folder / "calibration"
        rate = self.grid.rate_of(self.models)
        if not file.exists():
            evaluation = Evaluation(study, pair, [task], folder)
            watch(evaluation, self.console)
            rule: Any = study.systems[0].settings.rule
            tokens = open_run(folder, "evaluation").tokens
            found = calibrate(tokens, tau_o=rule.tau_o, top_n=rule.top_n, rate=rate)
            calibration_file(found, evaluation, rate=rate).save(file)
        calibrated = read_calibration(file)
        known = calibrated.estimates
        if known["wanted_rate"] != rate:
            raise ConfigError(
                f"{file} was made with rate = {known['wanted_rate']}, and {rate} is asked for; "
                "choose another --out"
            )
        opened = known["rates"]["gate"]["value"]
        self._say(
            f"tau_h is {calibrated.fields['tau_h']:.3f} nats: {known['method']}, from "
            f"{known['texts']} texts of {task.name}, where the gate is open at {opened:.2%} of "
            "positions"
        )
        for warning in known["warnings"]:
            self._say(f"warning: {warning} (--rate)", "yellow")
        return calibrated


@contextmanager
def _way_out(line: str) -> Iterator[None]:
    """Adds a way out to the message of a task that cannot be loaded."""
    try:
        yield
    except EasdError as error:
        raise type(error)(f"{error} ({line})") from None


def _tau_h(calibrated: CalibrationFile | None) -> float | None:
    return None if calibrated is None else calibrated.fields.get("tau_h")


def _slug(models: Mapping[str, Any]) -> str:
    """A folder's name for a pair of models."""
    names = "-".join(str(models[name]).rpartition("/")[2] for name in MODELS if name in models)
    return re.sub(r"[^A-Za-z0-9.]+", "-", names).strip("-.")
