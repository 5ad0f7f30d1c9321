"""Parts of a run's tables, which are written in groups of one name and checked when read.

A group is complete once its last table in the order of `TABLES` is there; that part's metadata
lists the tables of the group.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from easd.errors import TraceError
from easd.runs.files import replace_file
from easd.runs.schema import TABLES, Kind
from easd.runs.seal import is_intact, seal_part

_TABLES = b"easd.tables"
_DAMAGED = "is damaged, or was written elsewhere"
_AGAIN: dict[Kind, str] = {
    "trace": "record the trace again, into another folder",
    "evaluation": "run the same `easd eval` again with this --out: it decodes the part anew",
    "bench": "run the same `easd bench` again with this --out: it times the part anew",
}


class Parts:
    """The parts in a run's folder.

    Args:
        folder: with a folder for each table.
        kind: of the run.
        run: its id; parts of other runs are refused.
    """

    def __init__(self, folder: Path, kind: Kind, run: str) -> None:
        self.folder = folder
        self.kind: Kind = kind
        self.run = run
        self.marker = list(TABLES[kind])[-1]

    def path(self, table: str, name: str) -> Path:
        return self.folder / table / f"{name}.parquet"

    def names(self, table: str) -> list[str]:
        """Names of a table's parts, damaged ones included."""
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
            sink = pa.BufferOutputStream()
            pq.write_table(rows, sink, compression="zstd")
            content = seal_part(sink.getvalue().to_pybytes(), self._place(table, name))
            replace_file(self.path(table, name), lambda to, c=content: to.write_bytes(c))

    def read(self, table: str, name: str) -> pa.Table:
        """A part, with the group's tables in its metadata.

        Raises:
            TraceError: It is missing, damaged, not of this run, or has other columns.
        """
        content = self._content(table, name)
        if not is_intact(content, self._place(table, name)):
            raise self._error(table, name, _DAMAGED)
        rows = pq.ParquetFile(pa.BufferReader(content)).read()
        if not rows.schema.equals(TABLES[self.kind][table]):
            raise self._error(table, name, "has columns of another version")
        return rows

    def group(self, name: str, table: str | None = None) -> dict[str, pa.Table]:
        """The tables of a group, whose last one is `table`.

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

    def strange(self, intact: Container[tuple[str, str]] = ()) -> Iterator[tuple[str, str]]:
        """Table and name of every part that is damaged or not of this run.

        Parts in `intact` are not checked.
        """
        for table in TABLES[self.kind]:
            for name in self.names(table):
                if (table, name) not in intact and not self._is_intact(table, name):
                    yield table, name

    def _is_intact(self, table: str, name: str) -> bool:
        try:
            return is_intact(self._content(table, name), self._place(table, name))
        except TraceError:
            return False

    def check_strange(self, intact: Container[tuple[str, str]]) -> None:
        """Refuses parts that are damaged or not of this run.

        Raises:
            TraceError: There is one.
        """
        for table, name in self.strange(intact):
            raise self._error(table, name, _DAMAGED)

    def missing(self, table: str, name: str) -> TraceError:
        """The error for a missing part."""
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
