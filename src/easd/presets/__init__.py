"""The paper's experiments as data: what to decode, what to show, and what was reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from easd.errors import ConfigError, shown
from easd.parsing import parse_yaml

_FOLDER = Path(__file__).parent
_SHAPES = "shapes"

PRESETS = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml") if path.stem != _SHAPES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """A published result of one system.

    Attributes:
        task: its name; `all tasks` where a number is of several.
        improvement: wall-time improvement over the target alone.
        of: the count behind a share, if it is known.
    """

    task: str
    system: str
    accuracy: float | None = None
    tokens_per_second: float | None = None
    improvement: float | None = None
    of: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One experiment.

    Attributes:
        title: one line for listings.
        pairs: mappings with `target` and `draft`.
        calibrate: the task on which the threshold is found.
        shows: what is printed.
        grid: settings of the evaluation.
        sweep: thresholds whose pairs are the systems.
        random_refusal: whether random refusal at EASD's rate is added.
        notes: what a reader has to know.
    """

    name: str
    title: str
    pairs: tuple[Mapping[str, str], ...]
    calibrate: str
    shows: Literal["accuracy", "speed", "thresholds", "failures"]
    grid: Mapping[str, Any]
    sweep: Mapping[str, Sequence[float]] | None = None
    random_refusal: bool = False
    reported: tuple[Reported, ...] = ()
    notes: tuple[str, ...] = ()


def preset(name: str) -> Preset:
    """Returns a preset by name.

    Raises:
        ConfigError: There is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {shown(name)} is not known; choose one of {', '.join(PRESETS)}")
    values = _read(name)
    return Preset(
        name=name,
        pairs=tuple(values.pop("pairs")),
        reported=tuple(Reported(**each) for each in values.pop("reported", ())),
        notes=tuple(values.pop("notes", ())),
        **values,
    )


def known_shapes() -> dict[str, dict[str, Any]]:
    """Returns the configurations, by hub id, of the models that presets name."""
    return _read(_SHAPES)


def _read(name: str) -> dict[str, Any]:
    return parse_yaml((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
