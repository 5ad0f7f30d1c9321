"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from easd.errors import TraceError


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes beside the path and renames, so that a reader sees a whole file or none.

    Raises:
        TraceError: It cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(exist_ok=True)
        write(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        raise TraceError(
            f"cannot write {str(path)!r} ({error.strerror or error}); what was written before "
            "stays readable"
        ) from None
