"""What stops a worker with the V2 model runner before it serves."""

from types import SimpleNamespace

import pytest
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.spec_decode import rejection_sampler
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

from easd.core.rules import EASD
from easd.errors import ConfigError
from easd.integrations.vllm.serving import Serving
from easd.integrations.vllm.worker_v2 import attach

SERVING = Serving(rule=EASD(tau_h=1.0, tau_o=0.8))


def changed(logits, draft):
    raise AssertionError


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (rejection_sampler, "rejection_sample"),
        (RejectionSampler, "_verify"),
        (Sampler, "add_request"),
        (DraftModelSpeculator, "sample_draft"),
    ],
)
def test_a_changed_seam_is_refused(monkeypatch, owner, name):
    worker = SimpleNamespace(compile_or_warm_up_model=lambda: None)
    monkeypatch.setattr(owner, name, changed)
    with pytest.raises(ConfigError, match=rf"{name}\(logits, draft\) is not the one easd builds"):
        attach(worker, SERVING)


def test_a_missing_seam_is_refused():
    with pytest.raises(ConfigError, match=r"compile_or_warm_up_model\(\) is not the one"):
        attach(SimpleNamespace(), SERVING)
