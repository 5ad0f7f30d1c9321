"""What stops an engine before it starts."""

from types import SimpleNamespace

import pytest
import vllm
from in_vllm.conftest import ARGUMENTS, SPECULATION
from vllm.engine.arg_utils import EngineArgs

from easd.errors import ConfigError, EasdError
from easd.integrations.vllm import EXTENSION
from easd.integrations.vllm.start import check_second_runner, check_version


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
        ({"speculative_config": None}, "needs a draft model"),
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


def test_an_untried_version_is_refused(monkeypatch):
    check_version()
    monkeypatch.setattr(vllm, "__version__", "0.99.1")
    with pytest.raises(ConfigError, match=r"vLLM 0.99.1 was not tested"):
        check_version()


@pytest.mark.parametrize("setting", ["watermark_config", "enable_batch_sharded_sampling"])
def test_what_only_the_second_runner_can_do_is_refused(setting):
    off = {"watermark_config": None, "enable_batch_sharded_sampling": False}
    check_second_runner(SimpleNamespace(**off, parallel_config=SimpleNamespace(**off)))
    on = {**off, setting: True}
    with pytest.raises(ConfigError, match=f"{setting}.*leave|leave out {setting}"):
        check_second_runner(SimpleNamespace(**on, parallel_config=SimpleNamespace(**on)))


def test_a_changed_seam_is_refused(monkeypatch):
    from vllm.v1.sample import rejection_sampler

    from easd.integrations.vllm.worker import check_seams

    def rejection_sample(logits, draft):
        raise AssertionError

    monkeypatch.setattr(rejection_sampler, "rejection_sample", rejection_sample)
    with pytest.raises(ConfigError, match=r"rejection_sample\(logits, draft\) is not the one"):
        check_seams(SimpleNamespace(), rejection_sampler)
