"""Run folders, which every command that decodes writes and every report reads.

    DIR/run.json             kind, format, config, provenance, status, start and end
    DIR/TABLE/PART.parquet   rows of one of the tables that `schema.TABLES` has for the kind

A part is a complete Parquet file that appears by renaming. So a run that ends in any way leaves a
readable folder, and a kill loses the current part at most. Reading needs no torch.
"""

from easd.runs.cells import traces
from easd.runs.reader import Run, open_run
from easd.runs.schema import TABLES
from easd.runs.tally import Tally, summary
from easd.runs.writer import RunFolder, describe

__all__ = ["TABLES", "Run", "RunFolder", "Tally", "describe", "open_run", "summary", "traces"]
