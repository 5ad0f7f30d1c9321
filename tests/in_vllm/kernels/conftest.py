"""The Triton kernels, on a GPU or in Triton's interpreter.

On a GPU run `pytest -m vllm tests/in_vllm/kernels`; elsewhere, `in_vllm/test_kernels.py` runs the
interpreter. It has no libdevice, whose two functions numpy stands in for: `log1p` is then as good
as torch's, and `fast_log2f` better than the GPU's, which may be off by 2^-22.
"""

import os
from types import SimpleNamespace

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not (INTERPRETED or torch.cuda.is_available()):
    collect_ignore_glob = ["test_*.py"]


def by_numpy(function):
    from triton.language.core import tensor
    from triton.runtime.interpreter import TensorHandle

    def applied(x):
        return tensor(TensorHandle(function(x.handle.data), x.handle.dtype), x.type)

    return applied


@pytest.fixture(scope="session", autouse=True)
def device():
    if not INTERPRETED:
        return "cuda"
    import numpy as np

    from easd.core import triton_kernels

    triton_kernels.libdevice = SimpleNamespace(
        log1p=by_numpy(np.log1p), fast_log2f=by_numpy(np.log2)
    )
    return "cpu"
