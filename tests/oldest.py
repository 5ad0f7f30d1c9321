"""Prints the oldest version of everything that the package and two of its extras allow.

Torch is the exception: of its older versions there is no small build for CPUs, so it is the one in
constraints.txt. The extras for other harnesses ask for the release that the suite runs with anyway.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("study", "serve")

project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
groups = [project["dependencies"], *(project["optional-dependencies"][name] for name in EXTRAS)]
for line in (line for group in groups for line in group):
    if line.startswith("torch"):
        continue
    name, version = re.fullmatch(r"([\w.\[\]-]+)>=([\d.]+)(?:,<[\d.]+)?", line).groups()
    print(f"{name}=={version}")
constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
print(*(line for line in constraints if line.startswith("torch==")))
print("hypothesis", "pytest", sep="\n")
