"""The benchmark files that some tests read; they are not part of this project."""

import os
from pathlib import Path

import pytest


def benchmark_files() -> Path:
    """Folder of the files, from EASD_DATA or beside the checkout; skips the test without one."""
    named = os.environ.get("EASD_DATA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(named) if named else beside
    if not folder.is_dir():
        pytest.skip("benchmark files are not here; name their folder in EASD_DATA")
    return folder
