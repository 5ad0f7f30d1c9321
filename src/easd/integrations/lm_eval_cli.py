"""`easd-lm-eval`: the command line of lm-evaluation-harness with the model `easd` registered.

The harness does not discover models of other packages, so this imports the model first.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from easd.errors import EasdError

USAGE_ERROR = 2


def main() -> None:
    """Runs `lm-eval`; user errors print one line and exit with code 2."""
    try:
        from lm_eval.__main__ import cli_evaluate

        import easd.integrations.lm_eval  # noqa: F401
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("lm_eval"):
            raise
        _fail("lm-evaluation-harness is not installed; run pip install 'easd[lm-eval]'")
    try:
        cli_evaluate()
    except EasdError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USAGE_ERROR)
