"""Open any run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from easd.errors import TraceError
from easd.runs.schema import FORMAT, TABLES, Kind

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
    """A run as tables; those that its kind does not have are empty and without columns.

    Attributes:
        folder: where it was read from.
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
    """Reads everything a run has written so far, whether it ended, was stopped or still runs.

    Args:
        folder: of any run.
        kind: that is wanted, if only one will do.

    Raises:
        TraceError: The folder holds no run, one of another kind or format, or a damaged part.
    """
    folder = Path(folder)
    run = read_description(folder, kind)
    schemas = TABLES[run["kind"]]
    return Run(folder=folder, run=run, **{n: _read_table(folder, n, schemas[n]) for n in schemas})


def read_description(folder: Path, kind: Kind | None = None) -> dict[str, Any]:
    """The content of run.json, with kind and format checked.

    Raises:
        TraceError: See `open_run`.
    """
    path = folder / "run.json"
    if (folder / "bench.json").exists() and not path.exists():
        raise TraceError(_outdated(folder, "a benchmark (bench.json)", {}))
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        wanted = _WRITTEN_BY[kind] if kind else "easd generate, eval or bench"
        raise TraceError(
            f"{str(folder)!r} holds no {kind or 'run'} ({error.strerror}: run.json); "
            f"give the folder that `{wanted}` wrote"
        ) from None
    except ValueError as error:
        raise TraceError(f"{str(path)!r} is damaged ({error}); the run cannot be read") from None
    if not isinstance(run, dict) or "format" not in run:
        raise TraceError(f"{str(path)!r} describes no run; give another folder")
    if run["format"] == 1:
        raise TraceError(_outdated(folder, CALLED.get(run.get("kind", "trace"), "a run"), run))
    if run["format"] != FORMAT:
        raise TraceError(
            f"{str(path)!r} has format {run['format']!r}, this version reads {FORMAT}; "
            "read it with the version that wrote it"
        )
    if run.get("kind") not in TABLES:
        raise TraceError(f"{str(path)!r} has kind {run.get('kind')!r}; give another folder")
    if kind not in (None, run["kind"]):
        raise TraceError(
            f"{str(folder)!r} holds {CALLED[run['kind']]}, not {CALLED[kind]}; "
            f"give the folder that `{_WRITTEN_BY[kind]}` wrote, or look at this one with "
            "`easd inspect`"
        )
    return run


def _outdated(folder: Path, what: str, run: dict[str, Any]) -> str:
    version = run.get("versions", {}).get("easd")
    return (
        f"{str(folder)!r} holds {what} of format 1, this version reads {FORMAT}; run it again into "
        f"another folder, or read it with the commit that wrote it"
        + (f" (easd {version})" if version else "")
    )


def _read_table(folder: Path, name: str, schema: pa.Schema) -> pa.Table:
    parts = []
    for path in sorted((folder / name).glob("*.parquet")):
        try:
            parts.append(pq.ParquetFile(path).read())
        except (OSError, pa.ArrowException) as error:
            raise TraceError(
                f"{str(path)!r} is damaged ({str(error).splitlines()[0]}); remove that file to "
                "read the rest; an evaluation that goes on decodes it again"
            ) from None
    # Each part has a dictionary of its own for names, which Arrow does not group by.
    return pa.concat_tables(parts).unify_dictionaries() if parts else schema.empty_table()
