"""The functions of vLLM that the plugin relies on, and checks whether a vLLM has them.

`python -m easd.integrations.vllm.compatibility vllm-0.33.0-...whl` lists those that a wheel has
changed, without installing it.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from operator import attrgetter
from zipfile import ZipFile

from easd.errors import ConfigError


@dataclass(frozen=True, slots=True)
class VllmFunction:
    """A function, and those first arguments that the plugin relies on, separated by spaces."""

    module: str
    function: str
    arguments: str

    def check(self, found: Sequence[str] | None) -> str | None:
        """Returns what is wrong with the arguments `found`, which are None without the function."""
        wanted = self.arguments.split()
        if found is not None and list(found[: len(wanted)]) == wanted:
            return None
        return (
            f"this vLLM's {self.function}({', '.join(found or ())}) is not the one easd builds on "
            f"({', '.join(wanted)}); install a tested version"
        )


REQUESTS = (
    VllmFunction(
        "vllm.v1.engine.input_processor", "InputProcessor._validate_params", "self params"
    ),
)
METRICS = (VllmFunction("vllm.plugins", "load_endpoint_plugins", ""),)
FIRST_RUNNER = (
    VllmFunction(
        "vllm.v1.sample.rejection_sampler",
        "rejection_sample",
        "draft_token_ids num_draft_tokens max_spec_len cu_num_draft_tokens draft_probs "
        "target_logits bonus_token_ids sampling_metadata",
    ),
    VllmFunction(
        "vllm.v1.worker.gpu_model_runner",
        "GPUModelRunner._sample",
        "self logits spec_decode_metadata",
    ),
    VllmFunction(
        "vllm.v1.spec_decode.llm_base_proposer",
        "SpecDecodeBaseProposer._sample_draft_tokens",
        "self hidden_states sampling_metadata",
    ),
)
SECOND_RUNNER = (
    VllmFunction(
        "vllm.v1.worker.gpu.spec_decode.rejection_sampler",
        "rejection_sample",
        "target_logits draft_logits draft_sampled cu_num_logits pos idx_mapping "
        "expanded_idx_mapping expanded_local_pos temperature",
    ),
    VllmFunction(
        "vllm.v1.worker.gpu.spec_decode.rejection_sampler",
        "RejectionSampler._verify",
        "self logits draft_logits draft_sampled pos cu_num_logits idx_mapping idx_mapping_np",
    ),
    VllmFunction(
        "vllm.v1.worker.gpu.sample.sampler", "Sampler.add_request", "self req_idx sampling_params"
    ),
    # It draws drafts by the temperature alone, which the plugin assumes.
    VllmFunction(
        "vllm.v1.worker.gpu.spec_decode.speculator",
        "DraftModelSpeculator.sample_draft",
        "self hidden_states sample_src_positions idx_mapping temperature seeds draft_step "
        "draft_logits",
    ),
    VllmFunction("vllm.v1.worker.gpu_worker", "Worker.compile_or_warm_up_model", "self"),
)


def check_functions(functions: Iterable[VllmFunction]) -> None:
    """Compares the functions with those of the installed vLLM.

    Raises:
        ConfigError: One is missing or takes other arguments.
    """
    for each in functions:
        wrong = each.check(_installed(each))
        if wrong:
            raise ConfigError(wrong)


def _installed(wanted: VllmFunction) -> list[str] | None:
    try:
        function = attrgetter(wanted.function)(import_module(wanted.module))
    except (ImportError, AttributeError):
        return None
    return list(inspect.signature(function).parameters)


def changed_in(wheel: str, functions: Iterable[VllmFunction]) -> list[str]:
    """Returns one line for each function that is missing or has other arguments in a wheel."""
    with ZipFile(wheel) as files:
        return [wrong for each in functions if (wrong := each.check(_written(files, each)))]


def _written(files: ZipFile, wanted: VllmFunction) -> list[str] | None:
    """Returns a function's arguments in the source that defines it, following imports."""
    base = wanted.module.replace(".", "/")
    path = next((p for p in (f"{base}.py", f"{base}/__init__.py") if p in files.namelist()), None)
    if path is None:
        return None
    body = ast.parse(files.read(path)).body
    *classes, name = wanted.function.split(".")
    for each in classes:
        body = next((n.body for n in body if isinstance(n, ast.ClassDef) and n.name == each), [])
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return _written(files, replace(wanted, module=str(node.module)))
    return None


if __name__ == "__main__":
    broken = changed_in(sys.argv[1], (*REQUESTS, *METRICS, *FIRST_RUNNER, *SECOND_RUNNER))
    print("\n".join(broken) or "nothing that easd builds on has changed")
    sys.exit(bool(broken))
