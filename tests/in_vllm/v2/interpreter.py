"""Makes vLLM's CPU build run its V2 model runner, with Triton's interpreter for the kernels.

The interpreter runs a kernel's Python, program by program. It has no libdevice, of which V2's
verification takes `log1p`, and cannot run vLLM's top-k/top-p kernel, for which vLLM's own PyTorch
version stands in. All other kernels of the runner are the real ones.
"""

from types import SimpleNamespace

import triton
import triton.language as tl
from triton.backends import backends


@triton.jit
def log1p(x):
    return tl.log(1.0 + x)


def prepare():
    """Before anything else imports vLLM, with TRITON_INTERPRET=1 in the environment."""
    backends["cpu"] = backends["nvidia"]  # the CPU build looks for the name only
    import vllm.v1.worker.cpu.shm  # noqa: F401  # stands in for what CUDA has
    from vllm.v1.sample.ops import topk_topp_sampler
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler_utils

    rejection_sampler_utils.tldevice = SimpleNamespace(log1p=log1p)
    topk_topp_sampler.apply_top_k_top_p_triton = topk_topp_sampler.apply_top_k_top_p_pytorch
