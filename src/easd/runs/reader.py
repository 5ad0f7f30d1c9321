"""Reads any run folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from easd.errors import TraceError, shown, visible
from easd.parsing import parse_json
from easd.runs.parts import Parts
from easd.runs.schema import FORMAT, TABLES, Kind
from easd.runs.seal import is_sealed

CALLED: dict[Kind, str] = {
    "trace": "a trace",
    "evaluation": "an evaluation",
    "bench": "a benchmark",
}
_WRITTEN_BY: dict[str, str] = {
    "trace": "easd generate --trace",
    "evaluation": "easd eval --out",
    "bench": "easd bench --out",
}


def _empty() -> pa.Table:
    return pa.table({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as tables, empty and without columns where its kind has none.

    Attributes:
        run: the content of run.json.
    """

    folder: Path
    run: dict[str, Any]
    tokens: pa.Table = field(default_factory=_empty)
    steps: pa.Table = field(default_factory=_empty)
    samples: pa.Table = field(default_factory=_empty)
    vocabulary: pa.Table = field(default_factory=_empty)
    chunks: pa.Table = field(default_factory=_empty)
    items: pa.Table = field(default_factory=_empty)
    timings: pa.Table = field(default_factory=_empty)

    @property
    def kind(self) -> Kind:
        return self.run["kind"]


def open_run(folder: str | Path, kind: Kind | None = None) -> Run:
    """Reads everything a run has written so far, whether it has ended or not.

    Args:
        folder: of any run.
        kind: the only kind to accept, if any.

    Raises:
        TraceError: The folder holds no run, one of another kind or format, or a part that is
            damaged, missing, or not of this run.
    """
    folder = Path(folder)
    run = read_description(folder, kind)
    tables = read_tables(Parts(folder, run["kind"], run["run"]), run)
    if run["kind"] == "evaluation":
        _check_keys(folder, run, tables["samples"])
    return Run(folder=folder, run=run, **tables)


def read_tables(parts: Parts, run: dict[str, Any]) -> dict[str, pa.Table]:
    """All complete groups of parts; raises as `open_run` does."""
    names = parts.names(parts.marker)
    for name in run.get("parts", ()):
        if name not in names:
            raise parts.missing(parts.marker, name)
    groups = [(name, parts.group(name)) for name in names]
    if run["kind"] == "evaluation":
        needed = run["tasks"] if names else parts.names("items")
        groups += [(task, parts.group(task, "items")) for task in needed]
    parts.check_strange({(table, name) for name, group in groups for table in group})
    return {
        table: _joined([group[table] for _, group in groups if table in group], schema)
        for table, schema in TABLES[parts.kind].items()
    }


def read_description(folder: Path, kind: Kind | None = None) -> dict[str, Any]:
    """The content of run.json, with kind and format checked; raises as `open_run` does."""
    path = folder / "run.json"
    if (folder / "bench.json").exists() and not path.exists():
        raise TraceError(_outdated(folder, "a benchmark (bench.json)", {}))
    try:
        run = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        wanted = _WRITTEN_BY[kind] if kind else "easd generate, eval or bench"
        raise TraceError(
            f"{str(folder)!r} holds no {kind or 'run'} ({error.strerror}: run.json); "
            f"give the folder that `{wanted}` wrote"
        ) from None
    except ValueError as error:
        raise TraceError(f"{str(path)!r} is damaged ({error}); the run cannot be read") from None
    if not isinstance(run, dict) or "format" not in run:
        raise TraceError(f"{str(path)!r} does not describe a run; give another folder")
    if run["format"] in (1, 2):
        was = run.get("kind", "trace")  # absent from the first traces
        called = next((called for name, called in CALLED.items() if name == was), "a run")
        raise TraceError(_outdated(folder, called, run))
    if run["format"] != FORMAT:
        raise TraceError(
            f"{str(path)!r} has format {shown(run['format'])}, this version reads {FORMAT}; "
            "read it with the version that wrote it"
        )
    if not is_sealed(run):
        raise TraceError(
            f"{str(path)!r} is damaged, or was changed by hand (its seal does not fit); restore it "
            "from a copy, or run again into another folder"
        )
    if kind not in (None, run["kind"]):
        raise TraceError(
            f"{str(folder)!r} holds {CALLED[run['kind']]}, not {CALLED[kind]}; "
            f"give the folder that `{_WRITTEN_BY[kind]}` wrote, or look at this one with "
            "`easd inspect`"
        )
    return run


def _outdated(folder: Path, what: str, run: dict[str, Any]) -> str:
    versions = run.get("versions")
    version = versions.get("easd") if isinstance(versions, dict) else None
    return (
        f"{str(folder)!r} holds {what} of format {run.get('format', 1)}, this version reads "
        f"{FORMAT}; run it again into another folder, or read it with the version that wrote it"
        + (f" (easd {shown(version)})" if version else "")
    )


def _joined(parts: list[pa.Table], schema: pa.Schema) -> pa.Table:
    # Arrow cannot group by a column whose parts have different dictionaries.
    return pa.concat_tables(parts).unify_dictionaries() if parts else schema.empty_table()


def _check_keys(folder: Path, run: dict[str, Any], samples: pa.Table) -> None:
    """Refuses texts that do not belong to the grid or are there twice."""
    keys = ("system", "task", "seed", "index")
    known = {
        "system": [system["name"] for system in run["systems"]],
        "task": list(run["tasks"]),
        "seed": run["config"]["seeds"],
    }
    for name, values in known.items():
        strange = set(samples[name].unique().to_pylist()) - set(values)
        if strange:
            raise TraceError(
                f"{str(folder)!r} has texts of the {name} {visible(str(strange.pop()))!r}, which "
                "run.json does not name; evaluate again into another folder"
            )
    counts = samples.group_by(list(keys), use_threads=False).aggregate([([], "count_all")])
    twice = counts.filter(pc.field("count_all") > 1).to_pylist()
    if twice:
        first = ", ".join(f"{name} {visible(str(twice[0][name]))}" for name in keys)
        raise TraceError(
            f"{str(folder)!r} has a text twice ({first}); evaluate again into another folder"
        )
