"""The settings of a preset's evaluation, from its data and the options of `easd reproduce`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from easd.cli.grid_options import GridOptions, settings
from easd.errors import ConfigError
from easd.evaluate import presets
from easd.evaluate.config import REWARD_GUIDED
from easd.evaluate.grid import parse_task
from easd.pairs import lab
from easd.presets import Preset

MODELS = ("pair", "target", "draft")
_LAB_RATE = 0.02  # The paper's rule finds a threshold there at which the gate never opens.
_OF_THE_ENGINE = ("coupling", "trace", "batch_size", "baselines")
_SYSTEM_URL = re.compile(r"([^/=]+)=(https?://.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetGrid:
    """A preset with the options of `easd reproduce`, as settings of an evaluation."""

    preset: Preset
    asked: GridOptions
    first: int | None
    rate: float | None
    reward_model: str | None
    endpoint: tuple[str, ...]
    server: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.first is not None and self.first < 1:
            raise ConfigError(f"first = {self.first} decodes nothing; use 1 or more")
        if self.endpoint and any(name in (self.asked.models or {}) for name in MODELS):
            raise ConfigError("models and --endpoint were given; a server has its own models")
        if self.server and not self.endpoint:
            raise ConfigError(f"{next(iter(self.server))} is of a server; give --endpoint URL too")

    @property
    def models(self) -> list[dict[str, Any]]:
        """Settings of the models, for each run."""
        given = dict(self.asked.models or {})
        if self.endpoint or any(name in given for name in MODELS):
            return [given]
        return [{**pair, **given} for pair in self.preset.pairs]

    def values(self, models: Mapping[str, Any], tau_h: float | None = None) -> dict[str, Any]:
        """The evaluation's settings by name; `tau_h` is what thresholds are tried around."""
        decoding = settings(self.asked.decoding, seed=self.asked.seed, set_=self.asked.set_)
        values = {"baselines": False, **self.preset.grid, **models, **decoding}
        values["tasks"] = [self._limited(spec) for spec in self._tasks(models)]
        values["systems"] = self._systems(models, tau_h)
        return self._of_servers(values) if self.endpoint else values

    def rate_of(self, models: Mapping[str, Any]) -> float | None:
        """The rate at which the gate is to open; None for the paper's rule."""
        if self.rate is not None:
            return self.rate
        return _LAB_RATE if lab_task(models) else None

    def rewards_of(self, models: Mapping[str, Any]) -> dict[str, Any] | None:
        """The rule of reward-guided decoding; None where it cannot be used."""
        if self.endpoint:
            return None
        if self.reward_model is not None:
            return {"name": REWARD_GUIDED, "model": self.reward_model}
        return {"name": REWARD_GUIDED} if lab_task(models) else None

    def with_data(self, task: dict[str, Any]) -> dict[str, Any]:
        """A task with the file or folder that its items come from, if one was given."""
        return task if self.asked.data is None else {**task, "data": str(self.asked.data)}

    def _tasks(self, models: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self.asked.task:
            return list(settings(task=self.asked.task, data=self.asked.data)["tasks"])
        if name := lab_task(models):
            return [{"name": name}]
        return [self.with_data(parse_task(spec).to_dict()) for spec in self.preset.grid["tasks"]]

    def _limited(self, task: dict[str, Any]) -> dict[str, Any]:
        limits = [limit for limit in (self.first, task.get("limit")) if limit is not None]
        return {**task, "limit": min(limits, default=None)}

    def _systems(self, models: Mapping[str, Any], tau_h: float | None) -> list[Any]:
        grid = self.preset.sweep
        if grid is not None:
            heights = grid["tau_h"] if tau_h is None else presets.around(tau_h)
            return presets.sweep(heights, grid["tau_o"], {})
        systems: list[Any] = []
        for system in self.preset.grid["systems"]:
            if system != REWARD_GUIDED:
                systems.append(system)
            elif rewards := self.rewards_of(models):
                systems.append({"name": REWARD_GUIDED, "rule": rewards})
        return systems

    def _of_servers(self, values: dict[str, Any]) -> dict[str, Any]:
        """The settings with servers in the place of models."""
        own, shared = {}, []
        for text in self.endpoint:
            found = _SYSTEM_URL.fullmatch(text)
            if found:
                own[found[1]] = found[2]
            else:
                shared.append(text)
        if len(shared) != 1:
            raise ConfigError(
                f"{len(shared)} of the endpoints have no system; give one URL for all systems, and "
                "SYSTEM=URL for those that have their own server"
            )
        known = [_named(system)["name"] for system in values["systems"]]
        for name in own:
            if name not in known:
                raise ConfigError(
                    f"endpoint {name}={own[name]}: {name!r} is no system of {self.preset.name}; "
                    f"choose one of {', '.join(known)}"
                )
        size = values.get("batch_size")
        server = {"url": shared[0], **({} if size is None else {"concurrency": size})}
        kept = {
            key: value
            for key, value in values.items()
            if key not in _OF_THE_ENGINE or key in (self.asked.decoding or {})
        }
        systems = [_served(system, own) for system in values["systems"]]
        return {**kept, "endpoint": {**server, **self.server}, "systems": systems}


def _named(system: Any) -> dict[str, Any]:
    return {"name": system, "rule": system} if isinstance(system, str) else system


def _served(system: Any, own: Mapping[str, str]) -> Any:
    """A system that is asked of its own server, if it has one, which needs no rule."""
    name = _named(system)["name"]
    return {"name": name, "url": own[name]} if name in own else system


def lab_task(models: Mapping[str, Any]) -> str | None:
    """The task of a `lab` pair."""
    name = models.get("pair")
    return lab.ALIASES.get(name, name) if name in (*lab.ALIASES, *lab.RECIPES) else None
