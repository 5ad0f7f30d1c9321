"""Parts of a run's tables: written together under one name, and trusted only if all are intact.

A group of parts counts once the last of its tables in the order of `TABLES` is there; that part
names the tables that were written with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from easd.errors import TraceError
from easd.runs.files import replace_file
from easd.runs.schema import TABLES, Kind
from easd.runs.seal import is_intact, seal_part

_TABLES = b"easd.tables"
_AGAIN: dict[Kind, str] = {
    "trace": "record the trace again, into another folder",
    "evaluation": "run the same `easd eval` again with this --out: it decodes the part anew",
    "bench": "run the same `easd bench` again with this --out: it times the part anew",
}


class Parts:
    """The parts in a folder."""

    def __init__(self, folder: Path, kind: Kind, run: str) -> None:
        """Takes the folder of a run.

        Args:
            folder: with a folder for each table.
            kind: of the run.
            run: its id; parts of other runs are not taken.
        """
        self.folder = folder
        self.kind: Kind = kind
        self.run = run
        self.marker = list(TABLES[kind])[-1]

    def path(self, table: str, name: str) -> Path:
        return self.folder / table / f"{name}.parquet"

    def names(self, table: str) -> list[str]:
        """Names of a table's parts, intact or not."""
        found = (self.folder / table).glob("*.parquet")
        return sorted(path.stem for path in found if not path.name.startswith("."))

    def write(self, name: str, tables: Mapping[str, pa.Table]) -> None:
        """Writes a group, each table in the order of `TABLES`.

        Raises:
            TraceError: It cannot be written.
        """
        together = [table for table in TABLES[self.kind] if table in tables]
        for table in together:
            rows = tables[table].replace_schema_metadata({_TABLES: ",".join(together)})
            replace_file(
                self.path(table, name), lambda to, r=rows, t=table: self._put(r, to, t, name)
            )

    def _put(self, rows: pa.Table, to: Path, table: str, name: str) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        to.write_bytes(seal_part(sink.getvalue().to_pybytes(), self._place(table, name)))

    def read(self, table: str, name: str) -> pa.Table:
        """A part, whose metadata has what `together` reads.

        Raises:
            TraceError: It is missing, damaged, not of this run, or has other columns.
        """
        content = self._content(table, name)
        if not is_intact(content, self._place(table, name)):
            raise self._error(table, name, "is damaged, or was written elsewhere")
        rows = pq.ParquetFile(pa.BufferReader(content)).read()
        if not rows.schema.equals(TABLES[self.kind][table]):
            raise self._error(table, name, "has columns of another version")
        return rows

    def group(self, name: str, table: str | None = None) -> dict[str, pa.Table]:
        """The tables that were written together.

        Args:
            name: of the parts.
            table: the last of them.

        Raises:
            TraceError: One of them cannot be read.
        """
        last = self.read(table or self.marker, name)
        with_it = (last.schema.metadata or {})[_TABLES].decode().split(",")
        return {
            each: (last if each == with_it[-1] else self.read(each, name)).replace_schema_metadata()
            for each in with_it
        }

    def is_whole(self, name: str) -> bool:
        """Whether a group is there and intact."""
        try:
            self.group(name)
        except TraceError:
            return False
        return True

    def strange(self) -> list[tuple[str, str]]:
        """Table and name of every file that is damaged or not of this run."""
        return [
            (table, name)
            for table in TABLES[self.kind]
            for name in self.names(table)
            if not self._is_intact(table, name)
        ]

    def _is_intact(self, table: str, name: str) -> bool:
        try:
            return is_intact(self._content(table, name), self._place(table, name))
        except TraceError:
            return False

    def check_strangers(self, read: set[tuple[str, str]]) -> None:
        """Refuses parts that nobody wrote where they are; `read` are known to be intact.

        Raises:
            TraceError: There is one.
        """
        for table in TABLES[self.kind]:
            for name in self.names(table):
                if (table, name) not in read and not self._is_intact(table, name):
                    raise self._error(table, name, "is damaged, or was written elsewhere")

    def missing(self, table: str, name: str) -> TraceError:
        """The error of a part that is not there."""
        return self._error(table, name, "is missing")

    def _content(self, table: str, name: str) -> bytes:
        try:
            return self.path(table, name).read_bytes()
        except FileNotFoundError:
            raise self.missing(table, name) from None
        except OSError as error:
            raise self._error(table, name, f"cannot be read ({error.strerror})") from None

    def _place(self, table: str, name: str) -> str:
        return f"{self.run}/{table}/{name}"

    def _error(self, table: str, name: str, what: str) -> TraceError:
        return TraceError(f"{str(self.path(table, name))!r} {what}; {_AGAIN[self.kind]}")
