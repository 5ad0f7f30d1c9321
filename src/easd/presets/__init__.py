"""Config files that the package brings; commands take them by name."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent
PRESETS = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def config_path(config: str | Path) -> Path:
    """The file that a path or the name of a preset stands for; a file of that name comes first."""
    path = Path(config)
    return _FOLDER / f"{path}.yaml" if str(path) in PRESETS and not path.exists() else path
