"""Write a run folder, new or gone on with."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import pyarrow as pa

from easd.errors import EasdError, TraceError, shown
from easd.runs.files import now, write_json
from easd.runs.parts import Parts
from easd.runs.reader import CALLED, read_description
from easd.runs.schema import FORMAT, Kind
from easd.runs.seal import seal_json

_LOCK = ".lock"


def describe(kind: Kind, config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What run.json says of a run that begins now; `more` is its provenance and what it asks."""
    begun = {
        "format": FORMAT,
        "kind": kind,
        "run": _new_id(),
        "status": "running",
        "started": now(),
        "ended": None,
    }
    return {**begun, "config": dict(config), **more}


def _new_id() -> str:
    return uuid4().hex[:12]


class RunFolder:
    """A folder that this process alone writes; leave it as a context manager to close the run.

    Attributes:
        run: the content of run.json.
        earlier: what run.json said before this process, if the run goes on.
        damaged: files that were found damaged or not of this run, and put into the folder
            `damaged`.
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
        self.damaged: list[str] = []
        self._lock = self._claim()
        try:
            if (self.folder / "run.json").exists():
                self.earlier = read_description(self.folder, kind)
            run = self.earlier["run"] if self.earlier else _new_id()
            self.parts = Parts(self.folder, kind, run)
        except BaseException:
            self.release()
            raise

    def _claim(self) -> int:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            taken = any(self.folder.iterdir()) and not (self.folder / _LOCK).exists()
            if taken:
                if not any((self.folder / n).exists() for n in ("run.json", "bench.json")):
                    raise TraceError(
                        f"{str(self.folder)!r} holds something else; {CALLED[self.kind]} needs a "
                        "folder of its own"
                    )
                read_description(self.folder, self.kind)  # Says what it holds, if not a run.
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
        """Writes run.json; a run that goes on keeps its id and the time at which it was begun.

        What is damaged or not of this run is put aside, to be written again.
        """
        earlier = self.earlier or {}
        begun = {name: earlier[name] for name in ("started", "parts") if name in earlier}
        self.run = {**run, **begun, "run": self.parts.run}
        self._put_aside()
        self._save()

    def _put_aside(self) -> None:
        aside = self.folder / "damaged"
        for table, name in self.parts.strange():
            path = self.parts.path(table, name)
            place = aside / f"{table}-{_new_id()}.parquet"
            try:
                aside.mkdir(exist_ok=True)
                path.rename(place)
            except OSError as error:
                raise TraceError(
                    f"{str(path)!r} is damaged and cannot be moved ({error.strerror}); remove it"
                ) from None
            self.damaged.append(str(path))

    def write(self, name: str, tables: Mapping[str, pa.Table]) -> None:
        """Writes one part of some tables, each in the order in which `TABLES` has them."""
        self.parts.write(name, tables)

    def has(self, name: str) -> bool:
        """Whether a part and all that belongs with it is written and intact."""
        return self.parts.is_whole(name)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """The rows of a table in every part that is whole."""
        groups = [self.parts.group(n) for n in self.parts.names(self.parts.marker) if self.has(n)]
        return [row for group in groups for row in group[table].to_pylist()]

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
                    f"({shown(before.get(name))}, now {shown(value)}); name another "
                    "folder, or the settings it was begun with"
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
        """Writes how the run ended, and which parts it has: one that goes missing is missed."""
        known = dict.fromkeys([*self.run.get("parts", ()), *self.parts.names(self.parts.marker)])
        self.run |= {"status": status, "ended": now(), "parts": sorted(known), **more}
        self._save()

    def release(self) -> None:
        """Lets other processes write."""
        os.close(self._lock)

    def _save(self) -> None:
        write_json(self.folder / "run.json", seal_json(self.run))
