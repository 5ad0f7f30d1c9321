"""The folder of an evaluation: one file a finished unit, so that a killed run goes on where it was.

`run.json` says what was asked; `samples`, `units` and `tokens` hold a Parquet file for each unit,
and `items` one for each task. A unit's samples are written last and appear whole or not at all: a
unit without them is decoded again, and since all randomness is keyed, to the same texts.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from easd.errors import TraceError
from easd.runs.samples_schema import FORMAT, SCHEMAS
from easd.runs.files import replace_file, write_json

_TABLES = ("items", "tokens", "units", "samples")  # In the order of writing.


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An evaluation as tables; `run` is the content of run.json. See `easd.runs.samples_schema`."""

    folder: Path
    run: dict[str, Any]
    samples: pa.Table
    units: pa.Table
    tokens: pa.Table
    items: pa.Table


def read_run(folder: str | Path) -> Run:
    """Reads everything an evaluation has finished so far.

    Raises:
        TraceError: The folder holds no evaluation, or one of another version, or is damaged.
    """
    folder = Path(folder)
    run = read_description(folder)
    return Run(folder=folder, run=run, **{name: _read(folder, name) for name in _TABLES})


def read_description(folder: Path) -> dict[str, Any]:
    """The content of run.json.

    Raises:
        TraceError: There is none, or it is not an evaluation of this version.
    """
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TraceError(
            f"{str(folder)!r} holds no evaluation ({error.strerror}: run.json); "
            "give the folder that `easd eval --out` wrote"
        ) from None
    except ValueError as error:
        raise TraceError(f"{str(path)!r} is damaged ({error}); the run cannot be read") from None
    kind, version = (run.get("kind"), run.get("format")) if isinstance(run, dict) else (None, None)
    if kind != "evaluation":
        raise TraceError(
            f"{str(folder)!r} holds no evaluation; give the folder that `easd eval --out` wrote "
            "(`easd inspect` shows traces of `easd generate`)"
        )
    if version != FORMAT:
        raise TraceError(
            f"{str(path)!r} has format {version!r}, this version reads {FORMAT}; "
            "read it with the version that wrote it"
        )
    return run


def write_description(folder: Path, run: dict[str, Any]) -> None:
    """Writes run.json."""
    write_json(folder / "run.json", run)


def write_unit(folder: Path, name: str, tables: dict[str, pa.Table]) -> None:
    """Writes a unit's tables, its samples last."""
    for table in _TABLES:
        if table in tables:
            _write(folder / table / f"{name}.parquet", tables[table])


def is_written(folder: Path, name: str) -> bool:
    """Whether a unit is finished."""
    return (folder / "samples" / f"{name}.parquet").exists()


def write_items(folder: Path, task: str, items: pa.Table) -> None:
    """Writes what was asked of one task."""
    _write(folder / "items" / f"{task}.parquet", items)


def claim(folder: Path) -> int:
    """Takes the folder for this process; returns a file descriptor that holds it until closed.

    Raises:
        TraceError: It cannot be written, holds something else, or another process is at work in it.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = any(folder.iterdir()) and not (folder / ".lock").exists()
        if foreign:
            raise TraceError(
                f"{str(folder)!r} holds something else; an evaluation needs a folder of its own"
            )
        lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise TraceError(
            f"cannot write an evaluation to {str(folder)!r} ({error.strerror}); name another folder"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise TraceError(
            f"another process is evaluating in {str(folder)!r}; wait for it, or name another folder"
        ) from None
    return lock


def _write(path: Path, table: pa.Table) -> None:
    replace_file(path, lambda to: pq.write_table(table, to, compression="zstd"))


def _read(folder: Path, name: str) -> pa.Table:
    parts = []
    for path in sorted((folder / name).glob("*.parquet")):
        try:
            parts.append(pq.ParquetFile(path).read())
        except (OSError, pa.ArrowException) as error:
            raise TraceError(
                f"{str(path)!r} is damaged ({str(error).splitlines()[0]}); remove that file, and "
                "the evaluation decodes it again"
            ) from None
    # Columns that an earlier version did not write are null.
    return pa.concat_tables([SCHEMAS[name].empty_table(), *parts], promote_options="default")
