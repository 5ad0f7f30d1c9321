"""Writes a run folder, new or resumed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
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
    """The content of run.json for a run that begins now, with `more` entries."""
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
    """A folder that this process has locked; leaving its context closes the run.

    Attributes:
        run: the content of run.json.
        earlier: the content of run.json before this process, if the run is resumed.
        damaged: files that were damaged or not of this run, and moved into the folder `damaged`.
    """

    def __init__(self, folder: str | Path, kind: Kind) -> None:
        """Takes a new folder, an empty one, or one that holds a run of the same kind.

        Raises:
            TraceError: It cannot be written, holds something else, or is in use.
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
                read_description(self.folder, self.kind)  # raises if it holds another kind
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
                f"another process is writing to {str(self.folder)!r}; wait for it, or name another "
                "folder"
            ) from None
        return lock

    def begin(self, run: dict[str, Any]) -> None:
        """Writes run.json; a resumed run keeps its id and start.

        Parts that are damaged or not of this run are moved aside, to be written again.
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
        """Writes one group of parts."""
        self.parts.write(name, tables)

    def has(self, name: str) -> bool:
        """Whether a group of parts is complete and intact."""
        return self.parts.is_whole(name)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """The rows of a table in all complete groups."""
        groups = [self.parts.group(n) for n in self.parts.names(self.parts.marker) if self.has(n)]
        return [row for group in groups for row in group[table].to_pylist()]

    def check_same(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuses to resume with changed settings; those that `now` lacks may differ.

        Raises:
            TraceError: A setting differs.
        """
        for name, value in now.items():
            if before.get(name) != value:
                what, was, now_is = _difference(name, before.get(name), value)
                raise TraceError(
                    f"{str(self.folder)!r} holds a run with {what} = {was}, not {now_is}; name "
                    "another folder, or the settings of that run"
                )

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Writes into run.json how the run ended."""
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
        """Writes how the run ended, and its parts, so that a missing one is noticed."""
        known = dict.fromkeys([*self.run.get("parts", ()), *self.parts.names(self.parts.marker)])
        self.run |= {"status": status, "ended": now(), "parts": sorted(known), **more}
        self._save()

    def release(self) -> None:
        """Releases the lock."""
        os.close(self._lock)

    def _save(self) -> None:
        write_json(self.folder / "run.json", seal_json(self.run))


def _difference(what: str, before: Any, now: Any) -> tuple[str, str, str]:
    """The first place where two values differ, and both values there, in words."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        key = next(key for key in {**now, **before} if before.get(key) != now.get(key))
        return _difference(f"{what}: {key}", before.get(key), now.get(key))
    if isinstance(before, list) and isinstance(now, list):
        names = [_names(each) for each in (before, now)]
        if names[0] != names[1]:
            was, now_is = (", ".join(each) or "none" for each in names)
            return what, was, now_is
        place = next(place for place, each in enumerate(now) if each != before[place])
        return _difference(f"{what}: {names[0][place]}", before[place], now[place])
    was, now_is = ("none" if each is None else shown(each) for each in (before, now))
    return what, was, now_is


def _names(values: Sequence[Any]) -> list[str]:
    return [
        str(each.get("name", place)) if isinstance(each, Mapping) else shown(each)
        for place, each in enumerate(values, 1)
    ]
