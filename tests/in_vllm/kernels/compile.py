"""Compiles, for the GPU generation in argv, what the kernels' functions would launch there.

No GPU is needed: Triton asks this driver what to compile for, and nothing is launched. Prints a
line of JSON for each launch.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from easd.core import kernels
from easd.engine.models import fused

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


class Absent:
    """The driver of a GPU that is not there."""

    def get_current_target(self):
        return GPUTarget("cuda", int(sys.argv[1]), 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def instead_of_launching(function, grid):
    def compiled(*args, **options):
        kernel = function.run(*args, grid=grid, warmup=True, **options)
        print(json.dumps({"kernel": kernel.metadata.name, "usage": usage(kernel.asm["cubin"])}))

    return compiled


def usage(binary: bytes) -> dict[str, int]:
    """Registers, stack and so on of one thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    fields = (field.split(":") for field in told.split() if field.count(":") == 1)
    return {name: int(number) for name, number in fields if number.isdigit()}


def main():
    driver.set_active(Absent())
    JITFunction.__getitem__ = instead_of_launching
    for vocab_size in (1, 109, 152_064, 262_145):  # lengths of which 16 is a factor or not
        rows = torch.zeros(2, 6, vocab_size)
        for top_n in (1, 5, 16):
            kernels.gate_signals(rows, rows, top_n)
        kernels.sum_of_odds(rows, rows)
        kernels.race(rows, torch.zeros(2, 6, dtype=torch.int64))
    for dtype in (torch.float32, torch.bfloat16):
        rows, head = torch.zeros(2, 5, 3584, dtype=dtype), torch.zeros(128, dtype=dtype)
        keys, turning = torch.zeros(2, 4, 64, 128, dtype=dtype), torch.zeros(2, 5, 128, dtype=dtype)
        at = torch.zeros(2, 5, dtype=torch.int64)
        fused.add_norm(rows, rows, rows[0, 0], 1e-6)
        fused.gate_(rows, rows)
        for norms in (None, (head, head, 1e-6)):
            of_keys = rows[..., :512]
            fused.turn(rows, of_keys, of_keys, norms, turning, turning, at, keys, keys)


main()
