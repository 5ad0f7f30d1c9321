"""Read a trace folder; needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from easd.errors import TraceError
from easd.runs.schema import FORMAT, SCHEMAS


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A run as tables; `run` is the content of run.json. See `easd.runs.schema` for columns."""

    folder: Path
    run: dict[str, Any]
    tokens: pa.Table
    steps: pa.Table
    samples: pa.Table
    vocabulary: pa.Table


def read_trace(folder: str | Path) -> Trace:
    """Reads everything a run has flushed so far, whether it ended, was stopped or still runs.

    Raises:
        TraceError: The folder holds no trace, or a part of it is not readable.
    """
    folder = Path(folder)
    run = _read_run(folder)
    return Trace(folder=folder, run=run, **{name: _read_table(folder, name) for name in SCHEMAS})


def _read_run(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TraceError(
            f"{str(folder)!r} holds no trace ({error.strerror}: run.json); "
            "give the folder that --trace wrote"
        ) from None
    except ValueError as error:
        raise TraceError(f"{str(path)!r} is damaged ({error}); the run cannot be read") from None
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        found = run.get("format") if isinstance(run, dict) else None
        raise TraceError(
            f"{str(path)!r} has trace format {found!r}, this version reads {FORMAT}; "
            "read it with the version that wrote it"
        )
    return run


def _read_table(folder: Path, name: str) -> pa.Table:
    parts = []
    for path in sorted((folder / name).glob("part-*.parquet")):
        try:
            parts.append(pq.ParquetFile(path).read())
        except (OSError, pa.ArrowException) as error:
            raise TraceError(
                f"{str(path)!r} is damaged ({str(error).splitlines()[0]}); "
                "remove that file to read the rest"
            ) from None
    return pa.concat_tables(parts) if parts else SCHEMAS[name].empty_table()
