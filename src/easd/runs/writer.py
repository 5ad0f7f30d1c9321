"""Write a run folder, new or gone on with."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from easd.errors import EasdError, TraceError
from easd.runs.files import now, replace_file, write_json
from easd.runs.reader import CALLED, read_description
from easd.runs.schema import FORMAT, TABLES, Kind

_LOCK = ".lock"


def describe(kind: Kind, config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What run.json says of a run that begins now; `more` is its provenance and what it asks."""
    begun = {"format": FORMAT, "kind": kind, "status": "running", "started": now(), "ended": None}
    return {**begun, "config": dict(config), **more}


class RunFolder:
    """A folder that this process alone writes; leave it as a context manager to close the run.

    Attributes:
        run: the content of run.json.
        earlier: what run.json said before this process, if the run goes on.
    """

    def __init__(self, folder: str | Path, kind: Kind) -> None:
        """Takes a new folder, an empty one, or one that holds a run of the same kind.

        Raises:
            TraceError: It cannot be written, holds something else, or another process is at work
                in it.
        """
        self.folder = Path(folder)
        self.kind: Kind = kind
        self.run: dict[str, Any] = {}
        self.earlier: dict[str, Any] | None = None
        self._lock = self._claim()
        try:
            if (self.folder / "run.json").exists():
                self.earlier = read_description(self.folder, kind)
        except BaseException:
            self.release()
            raise

    def _claim(self) -> int:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            taken = any(self.folder.iterdir()) and not (self.folder / _LOCK).exists()
            if taken:
                if any((self.folder / name).exists() for name in ("run.json", "bench.json")):
                    read_description(self.folder, self.kind)  # Says what it holds.
                raise TraceError(
                    f"{str(self.folder)!r} holds something else; {CALLED[self.kind]} needs a "
                    "folder of its own"
                )
            lock = os.open(self.folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise TraceError(
                f"cannot write {CALLED[self.kind]} to {str(self.folder)!r} ({error.strerror}); "
                "name another folder"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise TraceError(
                f"another process is at work in {str(self.folder)!r}; wait for it, or name another "
                "folder"
            ) from None
        return lock

    def begin(self, run: dict[str, Any]) -> None:
        """Writes run.json; a run that goes on keeps the time at which it was begun."""
        begun = {"started": self.earlier["started"]} if self.earlier else {}
        self.run = {**run, **begun}
        self._save()

    def write(self, name: str, tables: Mapping[str, pa.Table]) -> None:
        """Writes one part of some tables, each in the order in which `TABLES` has them."""
        for table in TABLES[self.kind]:
            if table in tables:
                write_part(self.folder, table, name, tables[table])

    def has(self, table: str, name: str) -> bool:
        """Whether a part of a table is written."""
        return (self.folder / table / f"{name}.parquet").exists()

    def check_same(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuses to go on with settings that cannot change within a run.

        Args:
            before, now: the settings by name; those that `now` lacks may be anything.

        Raises:
            TraceError: A setting differs.
        """
        for name, value in now.items():
            if before.get(name) != value:
                raise TraceError(
                    f"{str(self.folder)!r} holds a run with another {name} "
                    f"({_short(before.get(name))}, now {_short(value)}); name another folder, or "
                    "the settings it was begun with"
                )

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Says in run.json how the run ended."""
        try:
            if kind is None:
                self.end("finished")
            elif issubclass(kind, EasdError):
                self.end("failed", error=str(error))
            elif issubclass(kind, (KeyboardInterrupt, GeneratorExit)):
                self.end("interrupted")
        finally:
            self.release()

    def end(self, status: str, **more: Any) -> None:
        """Writes how the run ended."""
        self.run |= {"status": status, "ended": now(), **more}
        self._save()

    def release(self) -> None:
        """Lets other processes write."""
        os.close(self._lock)

    def _save(self) -> None:
        write_json(self.folder / "run.json", self.run)


def write_part(folder: Path, table: str, name: str, rows: pa.Table) -> None:
    """Writes one Parquet file of a table.

    Raises:
        TraceError: It cannot be written.
    """
    path = folder / table / f"{name}.parquet"
    replace_file(path, lambda to: pq.write_table(rows, to, compression="zstd"))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
