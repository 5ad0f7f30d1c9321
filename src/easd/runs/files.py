"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from easd.errors import TraceError

_SURROGATE = re.compile(r"[\ud800-\udfff]")


def cache_folder() -> Path:
    """`EASD_CACHE`, or easd's folder in the user's cache."""
    return Path(os.environ.get("EASD_CACHE") or user_cache_path("easd"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes beside the path, syncs and renames, so readers see a whole file or none.

    Raises:
        TraceError: It cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            _sync(path.parent.parent)
        write(unfinished)
        _sync(unfinished)
        os.replace(unfinished, path)
        _sync(path.parent)
    except OSError as error:
        raise TraceError(
            f"cannot write {str(path)!r} ({error.strerror or error}); what was written before "
            "stays readable"
        ) from None


def _sync(path: Path) -> None:
    """Flushes a file, or a folder's names, to disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON.

    Raises:
        TraceError: It cannot be written.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    if _SURROGATE.search(text):  # UTF-8 cannot encode a lone surrogate, JSON escapes it
        text = json.dumps(value, indent=2) + "\n"
    replace_file(path, lambda to: to.write_text(text, encoding="utf-8"))


def now() -> str:
    """The time in run.json's format."""
    return datetime.now(UTC).isoformat(timespec="seconds")
