"""Forecasts of an experiment, without weights and without data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from cyclopts import Group, Parameter
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from easd.cli.options import Flag
from easd.config import RunConfig
from easd.errors import ConfigError, visible
from easd.evaluate.config import StudyConfig, System
from easd.evaluate.grid import TaskSpec
from easd.pairs.from_config import load_with_status
from easd.presets import Preset, known_shapes
from easd.speed.plan import (
    Acceptance,
    CostModel,
    Decoding,
    Shape,
    TaskSize,
    devices_for,
    most_hours,
    parse_hardware,
)
from easd.speed.plan.measure import memory_gb
from easd.tasks import TASKS

_FORECAST = Group("Forecast", sort_key=11)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is forecast, for which machine.

    Attributes:
        dry_run: Decode nothing; print texts, tokens, memory and hours.
        on: A device, such as h100 or h100:8, or a YAML file that describes one.
        acceptance: The acceptance rate.
    """

    dry_run: Annotated[bool, Flag(group=_FORECAST)] = False
    on: Annotated[str, Parameter(group=_FORECAST)] = "h200"
    acceptance: Annotated[float, Parameter(group=_FORECAST)] = 0.8


def forecast(preset: Preset, values: Mapping[str, Any], machine: Machine) -> None:
    """Prints an upper bound of what a preset costs with the settings of its evaluation.

    Raises:
        EasdError: A model, a task or a device is not known.
    """
    if "endpoint" in values:
        raise ConfigError("a server does not say what it runs on; leave out --endpoint")
    study = StudyConfig.from_dict(values)
    tasks = [_size(spec, study) for spec in study.tasks]
    target, draft = _shapes(study.base)
    hardware = parse_hardware(machine.on)
    settings = study.base.settings
    how = Decoding(
        batch=settings.batch_size,
        gamma=settings.gamma if isinstance(settings.gamma, int) else 4,
        acceptance=Acceptance(rates=(machine.acceptance,)),
    )
    costs = CostModel(hardware=hardware, target=target, draft=draft)
    needed = devices_for(costs, tasks, how)
    if needed is not None and needed > hardware.devices:
        costs = replace(costs, hardware=replace(hardware, devices=needed))
    console = Console()
    console.print(Text(visible(preset.title), "bold"), soft_wrap=True)
    console.print(_table(costs, study, tasks, how, preset))
    for line in _memory(costs, hardware.devices, needed, how):
        console.print(Text(visible(line)), soft_wrap=True)


def check_memory(base: RunConfig) -> None:
    """Refuses to load a preset's own models where their weights do not fit.

    Raises:
        ConfigError: They do not.
    """
    names = [name for name in (base.target, base.draft) if name in known_shapes()]
    device = base.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not names or torch.device(device).type not in ("cuda", "cpu"):
        return
    width = torch.float32 if base.dtype is None and device == "cpu" else torch.bfloat16
    width = width if base.dtype is None else getattr(torch, base.dtype)
    wanted = sum(Shape.named(name, width).weight_bytes for name in names) / 1e9
    if wanted > (has := memory_gb(device)):
        raise ConfigError(
            f"{' and '.join(names)} take {wanted:,.0f} GB, and {device} has {has:,.0f} GB; name "
            "other models (--pair lab-a, or --target and --draft) or a server (--endpoint URL), or "
            "see what it takes with --dry-run"
        )


def _size(spec: TaskSpec, study: StudyConfig) -> TaskSize:
    info = TASKS.get(spec.name)
    count = None if info is None else info.count
    if info is None or (count is None and spec.limit is None):
        raise ConfigError(
            f"the number of items of {spec.name} is not known; give it as {spec.name}:COUNT"
        )
    left = None if count is None else max(0, count - spec.first)
    items = min(each for each in (left, spec.limit) if each is not None)
    most = study.base.settings.max_new_tokens or info.max_new_tokens
    return TaskSize(name=spec.name, texts=items * len(study.seeds), most_tokens=most)


def _shapes(base: RunConfig) -> tuple[Shape, Shape]:
    if base.pair is None:
        assert base.target is not None, "a config without a pair has a target"
        if base.draft is None:
            raise ConfigError(f"target = {base.target!r} has no draft; name one")
        return Shape.named(base.target), Shape.named(base.draft)
    pair = load_with_status(base, Console(stderr=True))
    assert pair.draft is not None, "embedded pairs have both"
    return Shape.of(pair.target, f"{pair.name}'s target"), Shape.of(pair.draft, "its draft")


def _table(
    costs: CostModel, study: StudyConfig, tasks: list[TaskSize], how: Decoding, preset: Preset
) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("system")
    for name in ("texts", "tokens, at most", "hours, at most"):
        table.add_column(name, justify="right")
    texts = sum(task.texts for task in tasks)
    tokens = sum(task.texts * task.most_tokens for task in tasks)
    systems = [(system.name, _rule(system)) for system in study.systems]
    if preset.random_refusal:
        systems.append(("random refusal at easd's rate", "random-refusal"))
    total = 0.0
    for name, rule in systems:
        hours = most_hours(costs, rule, tasks, how)
        total += hours
        table.add_row(Text(visible(name)), f"{texts:,}", f"{tokens:,}", _hours(hours))
    table.add_section()
    count = len(systems)
    table.add_row("all", f"{count * texts:,}", f"{count * tokens:,}", _hours(total))
    named = ", ".join(f"{task.name} {task.texts:,} x {task.most_tokens:,}" for task in tasks)
    table.caption = Text(visible(f"texts of a system, and tokens of a text at most: {named}"))
    table.caption_justify = "left"
    return table


def _rule(system: System) -> str:
    entry = system.to_dict()
    return entry["kind"] if system.reward else entry["rule"]["name"]


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 0.1 else f"{60 * hours:,.1f} minutes"


def _memory(costs: CostModel, given: int, needed: int | None, how: Decoding) -> list[str]:
    assert costs.draft is not None, "a preset compares two models"
    models = [costs.target, costs.draft]
    weights = " and ".join(f"{each.name} {each.weight_bytes / 1e9:,.3g} GB" for each in models)
    name = costs.hardware.name
    lines = [f"weights: {weights}; {how.batch} texts at once, gamma {how.gamma}"]
    if needed is None:
        lines.append(f"no number of {name} has the memory for {how.batch} texts at once")
    elif needed > given:
        lines.append(f"{given} x {name} is too little memory; the hours are of {needed} x {name}")
    else:
        lines.append(f"this fits on {given} x {name}, of which the hours are")
    if costs.hardware.devices > 1:
        lines.append("a pair decodes on one device here; of several, use a server (--endpoint)")
    acceptance = how.acceptance.rates[0]
    lines.append(
        f"an upper bound, as if every text had as many tokens as it may; acceptance {acceptance:g}"
    )
    return lines
