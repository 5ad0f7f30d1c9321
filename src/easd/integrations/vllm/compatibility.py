"""Which functions of vLLM the plugin builds on, and whether a vLLM has them.

    python -m easd.integrations.vllm.seams vllm-0.33.0-...whl

says which of them a wheel has changed, without installing it.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from zipfile import ZipFile

from easd.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Seam:
    """A function, and the first of its arguments that are built on, separated by spaces."""

    module: str
    function: str
    arguments: str

    def check(self, found: Sequence[str] | None) -> str | None:
        """What is wrong with the arguments that a vLLM's function has, None where it is missing."""
        wanted = self.arguments.split()
        if found is not None and list(found[: len(wanted)]) == wanted:
            return None
        return (
            f"this vLLM's {self.function}({', '.join(found or ())}) is not the one easd builds on "
            f"({', '.join(wanted)}); install a tested version"
        )


REQUESTS = (
    Seam("vllm.v1.engine.input_processor", "InputProcessor._validate_params", "self params"),
)
METRICS = (Seam("vllm.plugins", "load_endpoint_plugins", ""),)
FIRST_RUNNER = (
    Seam(
        "vllm.v1.sample.rejection_sampler",
        "rejection_sample",
        "draft_token_ids num_draft_tokens max_spec_len cu_num_draft_tokens draft_probs "
        "target_logits bonus_token_ids sampling_metadata",
    ),
    Seam(
        "vllm.v1.worker.gpu_model_runner",
        "GPUModelRunner._sample",
        "self logits spec_decode_metadata",
    ),
    Seam(
        "vllm.v1.spec_decode.llm_base_proposer",
        "SpecDecodeBaseProposer._sample_draft_tokens",
        "self hidden_states sampling_metadata",
    ),
)
SECOND_RUNNER = (
    Seam(
        "vllm.v1.worker.gpu.spec_decode.rejection_sampler",
        "rejection_sample",
        "target_logits draft_logits draft_sampled cu_num_logits pos idx_mapping "
        "expanded_idx_mapping expanded_local_pos temperature",
    ),
    Seam(
        "vllm.v1.worker.gpu.spec_decode.rejection_sampler",
        "RejectionSampler._verify",
        "self logits draft_logits draft_sampled pos cu_num_logits idx_mapping idx_mapping_np",
    ),
    Seam(
        "vllm.v1.worker.gpu.sample.sampler", "Sampler.add_request", "self req_idx sampling_params"
    ),
    # Where it is settled that drafts are drawn by the temperature alone.
    Seam(
        "vllm.v1.worker.gpu.spec_decode.speculator",
        "DraftModelSpeculator.sample_draft",
        "self hidden_states sample_src_positions idx_mapping temperature seeds draft_step "
        "draft_logits",
    ),
    Seam("vllm.v1.worker.gpu_worker", "Worker.compile_or_warm_up_model", "self"),
)


def check_seams(seams: Iterable[Seam]) -> None:
    """Compares what the plugin builds on with the vLLM that is installed.

    Raises:
        ConfigError: A function is missing, or takes other arguments.
    """
    for seam in seams:
        wrong = seam.check(_installed(seam))
        if wrong:
            raise ConfigError(wrong)


def _installed(seam: Seam) -> list[str] | None:
    try:
        function = attrgetter(seam.function)(import_module(seam.module))
    except (ImportError, AttributeError):
        return None
    return list(inspect.signature(function).parameters)


def changed_in(wheel: str, seams: Iterable[Seam]) -> list[str]:
    """What is wrong with a wheel's functions, one line for each that does not fit."""
    with ZipFile(wheel) as files:
        return [wrong for seam in seams if (wrong := seam.check(_written(files, seam)))]


def _written(files: ZipFile, seam: Seam) -> list[str] | None:
    """A function's arguments in the source, where it is defined or imported into the module."""
    base = seam.module.replace(".", "/")
    path = next((p for p in (f"{base}.py", f"{base}/__init__.py") if p in files.namelist()), None)
    if path is None:
        return None
    body = ast.parse(files.read(path)).body
    *classes, name = seam.function.split(".")
    for each in classes:
        body = next((n.body for n in body if isinstance(n, ast.ClassDef) and n.name == each), [])
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return _written(files, Seam(str(node.module), seam.function, seam.arguments))
    return None


if __name__ == "__main__":
    broken = changed_in(sys.argv[1], (*REQUESTS, *METRICS, *FIRST_RUNNER, *SECOND_RUNNER))
    print("\n".join(broken) or "nothing that easd builds on has changed")
    sys.exit(bool(broken))
