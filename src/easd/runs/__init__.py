"""A run's trace: a folder of tables that every figure and inspector is computed from.

    DIR/run.json                      what was run, with what, and how it ended
    DIR/tokens/part-00000.parquet     one row per drafted position, replacement and bonus token
    DIR/steps/part-00000.parquet      one row per verification step
    DIR/samples/part-00000.parquet    one row per finished text
    DIR/vocabulary/part-00000.parquet the texts of all tokens that these tables name

Parts are complete Parquet files that appear by renaming, a few seconds apart, so whatever ends a
run leaves a trace that reads; what a kill can cost is the time since the last part. Reading needs
no torch; the writer is `easd.runs.writer.TraceWriter`.
"""

from easd.runs.reader import Trace, read_trace
from easd.runs.schema import SAMPLES, SCHEMAS, STEPS, TOKENS, VOCABULARY
from easd.runs.tally import Tally, summary

__all__ = [
    "SAMPLES",
    "SCHEMAS",
    "STEPS",
    "TOKENS",
    "VOCABULARY",
    "Tally",
    "Trace",
    "read_trace",
    "summary",
]
