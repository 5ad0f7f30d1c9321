"""Files with fields of rules that a calibration, a diagnosis or tuning fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from easd.core.rules import field_names, rule_names, rule_type
from easd.engine.settings import Settings
from easd.errors import ConfigError
from easd.parsing import parse_json
from easd.runs.files import write_json
from easd.tasks import Task

FORMAT = 1
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

Kind = Literal["calibration", "diagnosis", "tuning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationFile:
    """Fields of rules, and the models, settings and data they were found with.

    Attributes:
        kind: the command that wrote it.
        fields: of a rule: tau_h, tau_o, top_n, entropy_of; a diagnosis adds the pool's a and b.
            Tuning has a rule's `name` and everything fitted for it.
        pair: names of the models.
        fingerprints: hashes of the weights and of the tokenizer.
        sampling: the settings in `SAMPLING`.
        data: `data_of` each task.
        estimates: all measurements.
        decoding: settings that tuning found, used unless others are given.
        easd_version: version that wrote it.
    """

    kind: Kind
    fields: Mapping[str, Any]
    pair: str
    fingerprints: Mapping[str, str | None]
    sampling: Mapping[str, float]
    data: Sequence[Mapping[str, Any]]
    estimates: Mapping[str, Any]
    decoding: Mapping[str, Any] = field(default_factory=dict)
    easd_version: str = version("easd")
    format: int = FORMAT

    def save(self, path: Path) -> None:
        """Writes a JSON file into an existing folder.

        Raises:
            TraceError: It cannot be written.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        write_json(path, values)

    def check(self, fingerprints: Mapping[str, str | None], settings: Settings) -> None:
        """Refuses another pair, tokenizer, temperature or truncation than it was made for.

        Raises:
            ConfigError: One of them differs.
        """
        for name, found in self.fingerprints.items():
            if fingerprints.get(name) != found:
                raise ConfigError(
                    f"this {self.kind} was made for {self.pair}, and the {name} here is another "
                    f"one ({fingerprints.get(name)}, not {found}); make one for this pair, or use "
                    "--force"
                )
        now = sampling(settings)
        for name, value in self.sampling.items():
            if now[name] != value:
                raise ConfigError(
                    f"this {self.kind} was made at {name} = {value} and this run has {now[name]}; "
                    "make one for these settings, or use --force"
                )

    def fill(self, rule: Mapping[str, Any]) -> dict[str, Any]:
        """Adds the fields that the rule has and the mapping does not set.

        Tuned fields are for one rule, which is also the default where the mapping names none.
        """
        if "name" in self.fields:
            own = rule.get("name", self.fields["name"]) == self.fields["name"]
            return {**self.fields, **rule} if own else dict(rule)
        name = str(rule.get("name", "easd"))
        known = field_names(rule_type(name)) if name in rule_names() else []
        return {**{n: v for n, v in self.fields.items() if n in known}, **rule}

    def fitted_on(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """The entry in run.json: its data, and the number of items of `tasks` among them.

        The number is None where the file does not list its items.
        """
        known = all("fingerprints" in data for data in self.data)
        fitted = {each for data in self.data for each in data.get("fingerprints", ())}
        shared = {
            task.name: sum(item.fingerprint in fitted for item in task.items) if known else None
            for task in tasks
        }
        data = [{n: v for n, v in each.items() if n != "fingerprints"} for each in self.data]
        return {"kind": self.kind, "data": data, "overlap": shared}


def read_calibration(path: str | Path) -> CalibrationFile:
    """Reads a file that `easd calibrate`, `easd diagnose` or `easd tune` wrote.

    Raises:
        ConfigError: It is not such a file, or of another version.
    """
    path = Path(path)
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"cannot read the calibration {str(path)!r} ({reason})") from None
    except ValueError as error:
        raise ConfigError(f"{str(path)!r} is damaged ({error}); calibrate again") from None
    names = {f.name for f in fields(CalibrationFile)}
    if isinstance(values, dict):
        values.setdefault("decoding", {})  # absent from files older than `easd tune`
    if not isinstance(values, dict) or values.keys() != names or not _fits(values):
        raise ConfigError(f"{str(path)!r} is not a calibration; give a file of `easd calibrate`")
    if values["format"] != FORMAT:
        raise ConfigError(
            f"{str(path)!r} has format {values['format']!r}, this version reads {FORMAT}; "
            "calibrate again"
        )
    return CalibrationFile(**values)


def _fits(values: Mapping[str, Any]) -> bool:
    """Whether the values have a calibration's types."""
    mappings = ("fields", "fingerprints", "sampling", "estimates", "decoding")
    data = values["data"]
    return (
        all(isinstance(values[name], dict) for name in mappings)
        and isinstance(data, list)
        and all(isinstance(each, dict) for each in data)
        and values["sampling"].keys() <= set(SAMPLING)
    )


def data_of(task: Task) -> dict[str, Any]:
    """A task's name, source, hash and number of items, and each item's fingerprint."""
    return {
        "task": task.name,
        "source": task.source,
        "hash": task.data_hash,
        "items": len(task.items),
        "fingerprints": [item.fingerprint for item in task.items],
    }


def sampling(settings: Settings) -> dict[str, float]:
    """The settings that a calibration depends on."""
    return {name: getattr(settings, name) for name in SAMPLING}
