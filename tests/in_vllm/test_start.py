"""What stops an engine before it starts."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
from in_vllm.conftest import ARGUMENTS, SPECULATION
from vllm.engine.arg_utils import EngineArgs

from easd.core.rules import EASD
from easd.errors import ConfigError, EasdError
from easd.integrations.vllm import EXTENSION
from easd.integrations.vllm.compatibility import (
    FIRST_RUNNER,
    METRICS,
    REQUESTS,
    SECOND_RUNNER,
    changed_in,
    check_functions,
)
from easd.integrations.vllm.serving import Serving
from easd.integrations.vllm.start import check_second_runner, check_verification
from easd.integrations.vllm.worker import check_drafter

EVERY = (*REQUESTS, *METRICS, *FIRST_RUNNER, *SECOND_RUNNER)
# Where V2's `rejection_sample` is defined.
UTILS = "vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils"


def configured(easd, **arguments):
    given = {**ARGUMENTS, "speculative_config": SPECULATION, **arguments}
    return EngineArgs(**given, additional_config={"easd": easd}).create_engine_config()


def test_workers_are_told_to_load_the_extension():
    assert configured({}).parallel_config.worker_extension_cls == EXTENSION


def test_nothing_changes_while_not_configured():
    arguments = EngineArgs(**ARGUMENTS, speculative_config=SPECULATION)
    assert arguments.create_engine_config().parallel_config.worker_extension_cls == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"speculative_config": None}, "needs a draft;"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}},
            "method = 'ngram' cannot be served",
        ),
        (
            {"speculative_config": {**SPECULATION, "draft_sample_method": "greedy"}},
            "draft_sample_method = 'greedy' cannot be served",
        ),
        (
            {
                "speculative_config": {
                    **SPECULATION,
                    "rejection_sample_method": "synthetic",
                    "synthetic_acceptance_length": 2,
                }
            },
            "rejection_sample_method = 'synthetic' cannot be served",
        ),
        ({"worker_extension_cls": "somebody.Else"}, "worker_extension_cls = 'somebody.Else'"),
    ],
)
def test_settings_without_a_gate_stop_the_engine(arguments, says):
    with pytest.raises(ConfigError, match=says):
        configured({}, **arguments)


@pytest.mark.parametrize("values", [{"tau": 1}, {"tau_h": -1}, {"redraw": "target"}, 3])
def test_a_rule_that_does_not_fit_stops_the_engine(values):
    with pytest.raises(EasdError):
        configured(values)


@pytest.mark.parametrize(
    ("method", "second_runner", "coupling", "says"),
    [
        ("block", False, None, "needs vLLM's V2 model runner"),
        ("block", True, "maximal", "coupling = 'maximal' and rejection_sample_method = 'block'"),
        ("standard", True, "block", "coupling = 'block' and rejection_sample_method = 'standard'"),
    ],
)
def test_a_verification_that_is_another_coupling_is_refused(method, second_runner, coupling, says):
    check_verification("standard", second_runner, Serving(rule=EASD()))
    check_verification("block", True, Serving(rule=EASD()))
    with pytest.raises(ConfigError, match=says):
        check_verification(method, second_runner, Serving(rule=EASD(), coupling=coupling))


def test_a_drafter_without_probabilities_is_refused():
    with pytest.raises(ConfigError, match="SimpleNamespace keeps no draft probabilities"):
        check_drafter(SimpleNamespace(drafter=SimpleNamespace()))


@pytest.mark.parametrize("setting", ["watermark_config", "enable_batch_sharded_sampling"])
def test_what_only_the_second_runner_can_do_is_refused(setting):
    off = {"watermark_config": None, "enable_batch_sharded_sampling": False}
    check_second_runner(SimpleNamespace(**off, parallel_config=SimpleNamespace(**off)))
    on = {**off, setting: True}
    with pytest.raises(ConfigError, match=f"{setting}.*leave|leave out {setting}"):
        check_second_runner(SimpleNamespace(**on, parallel_config=SimpleNamespace(**on)))


@pytest.mark.parametrize("wanted", EVERY, ids=[wanted.function for wanted in EVERY])
def test_a_changed_function_is_refused(monkeypatch, wanted):
    def changed(logits, draft):
        raise AssertionError

    check_functions([wanted])
    *classes, name = wanted.function.split(".")
    owner = import_module(wanted.module)
    for each in classes:
        owner = getattr(owner, each)
    monkeypatch.setattr(owner, name, changed)
    if wanted.arguments:
        with pytest.raises(ConfigError, match=rf"{name}\(logits, draft\) is not the one"):
            check_functions([wanted])
    assert f"{name}() is not the one" in str(wanted.check(None))


def test_a_wheel_is_read_without_installing_it(tmp_path):
    """This vLLM's own files, and one with an argument renamed."""
    for renamed in (False, True):
        wheel = tmp_path / f"{renamed}.whl"
        with ZipFile(wheel, "w") as files:
            for module in {wanted.module for wanted in EVERY} | {UTILS}:
                source = Path(import_module(module).__file__)
                text = source.read_text()
                if renamed:
                    text = text.replace("draft_logits:", "logits_of_draft:")
                inside = module.replace(".", "/")
                package = source.name == "__init__.py"
                files.writestr(f"{inside}/__init__.py" if package else f"{inside}.py", text)
        found = " ".join(changed_in(str(wheel), EVERY))
        assert ("logits_of_draft" in found) == renamed
        assert ("RejectionSampler._verify" in found) == renamed
        assert "GPUModelRunner._sample" not in found
