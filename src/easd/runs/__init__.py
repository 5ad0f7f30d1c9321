"""Run folders: what every command that decodes leaves behind, and every report reads.

    DIR/run.json             kind, format, config, provenance, when it began and how it ended
    DIR/TABLE/PART.parquet   rows of one of the tables that `schema.TABLES` has for the kind

A part is a complete Parquet file that appears by renaming, so whatever ends a run leaves a folder
that reads; what a kill can cost is the part in work. Reading needs no torch.
"""

from easd.runs.cells import traces
from easd.runs.reader import Run, open_run
from easd.runs.schema import TABLES
from easd.runs.tally import Tally, summary
from easd.runs.writer import RunFolder, describe

__all__ = ["TABLES", "Run", "RunFolder", "Tally", "describe", "open_run", "summary", "traces"]
