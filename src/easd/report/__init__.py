"""Writes a report of evaluations: an HTML page, Markdown, and every table.

from easd.report import write_report
from easd.runs import open_run

write_report([open_run("my-run")], "my-report")
"""

from easd.errors import ConfigError

try:
    import jinja2  # noqa: F401
    import matplotlib  # noqa: F401
    import pandas  # noqa: F401
except ImportError as error:
    raise ConfigError(
        f"reports need {error.name}, which is not installed; pip install 'easd[study]'"
    ) from None

from easd.report.write import write_report

__all__ = ["write_report"]
