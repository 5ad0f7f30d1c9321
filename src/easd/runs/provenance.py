"""What every run.json says of the software and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("easd", "torch", "transformers", "pyarrow", "numpy")


def environment(**hardware: Any) -> dict[str, Any]:
    """Versions, hardware and the state of the checkout, in types that JSON knows.

    Args:
        hardware: more to say of it, such as the device that decodes.
    """
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        "hardware": {
            "system": platform.platform(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            **hardware,
        },
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from and whether it has changes, if it is one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # An installed copy is nobody's checkout.
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
