import gc
from threading import Thread

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from easd.engine.models import packing
from easd.engine.models.packing import PackedLinears

NO_BFLOAT16 = pytest.mark.skipif(
    not packing.packs_dtype(torch.bfloat16), reason="this processor multiplies no packed bfloat16"
)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(512, 768), nn.ReLU(), nn.Linear(768, 512, bias=False))


@pytest.mark.parametrize(
    ("dtype", "near"),
    [(torch.float32, 1e-5), pytest.param(torch.bfloat16, 1e-2, marks=NO_BFLOAT16)],
)
def test_same_products_and_the_model_is_left_as_it_was(dtype, near):
    layers, rows = model().to(dtype), torch.randn(2, 5, 512, dtype=dtype)
    plain = layers(rows)
    before = {name: id(value) for name, value in layers.state_dict(keep_vars=True).items()}
    with PackedLinears(layers), torch.inference_mode():
        assert "forward" in layers[0].__dict__
        torch.testing.assert_close(layers(rows), plain.detach(), atol=near, rtol=near)
    assert "forward" not in layers[0].__dict__
    assert before == {name: id(value) for name, value in layers.state_dict(keep_vars=True).items()}
    torch.testing.assert_close(layers(rows), plain, atol=0, rtol=0)


def test_weights_changed_since_are_packed_anew():
    layers, rows = model(), torch.randn(2, 512)
    with PackedLinears(layers), torch.inference_mode():
        layers(rows)
    with torch.no_grad():
        layers[0].weight.mul_(2)
        plain = layers(rows)
    with PackedLinears(layers), torch.inference_mode():
        torch.testing.assert_close(layers(rows), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("again", [False, True], ids=["next decode", "next forward"])
def test_changes_that_torch_does_not_count_are_seen(again):
    """A copy, a merged adapter, a moving average; the same storage and the same version."""
    layers, rows = model(), torch.randn(2, 512)
    context = PackedLinears(layers)
    for change in (
        lambda weight: weight.copy_(torch.randn_like(weight)),
        lambda weight: weight.add_(torch.randn(768, 2) @ torch.randn(2, 512)),
        lambda weight: weight.mul_(0.99),
    ):
        change(layers[0].weight.data)
        plain = layers(rows)
        with context if again else PackedLinears(layers), torch.inference_mode():
            torch.testing.assert_close(layers(rows), plain.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change", ["one weight", "two rows", "two columns"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=NO_BFLOAT16)])
def test_the_smallest_changes_are_seen_by_the_next_decode(change, dtype):
    layers = model().to(dtype)
    before = packing._packed_weight(layers[0])
    values = layers[0].weight.data
    if change == "one weight":
        values[100, 101] *= 1 + torch.finfo(dtype).eps
    elif change == "two rows":
        values[[3, 5]] = values[[5, 3]]
    else:
        values[:, [2, 3, 6, 7]] = values[:, [6, 7, 2, 3]]
    PackedLinears(layers)
    assert packing._packed_weight(layers[0]) is not before
    assert packing._packed_weight(layers[0]) is packing._packed_weight(layers[0])


@pytest.mark.parametrize("width", [512, 511])
def test_a_change_of_one_bit_changes_the_sums_of_any_dtype(width):
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.randn(7, width, dtype=dtype)
        before = packing._sums(weight)
        weight[3, 101] *= 1 + torch.finfo(dtype).eps
        changed = [
            torch.ne(*sums).sum() for sums in zip(before, packing._sums(weight), strict=True)
        ]
        assert changed == [1, 1]


def test_every_place_is_looked_at_in_turn():
    """A change of a few weights within a decode is seen after 64 forwards at the latest."""
    layers, rows = model(), torch.randn(2, 512)
    context = PackedLinears(layers)
    layers[0].weight.data[12, :16] += 1
    plain = layers(rows).detach()
    for _ in range(packing._PLACES):
        with context, torch.inference_mode():
            found = layers(rows)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


def test_layers_that_others_have_changed_are_left_alone():
    """An offloader sets `forward`, a pruner computes the weight before each product."""
    for late in (False, True):
        layers, rows = model(), torch.randn(2, 512)
        context = PackedLinears(layers) if late else None

        def theirs(given):
            return given.repeat(1, 2)[..., :768]

        layers[0].forward = theirs
        prune.l1_unstructured(layers[2], "weight", 0.5)
        prunes = layers[2].weight
        expected = layers(rows).detach()
        for _ in range(2):
            with context or PackedLinears(layers), torch.inference_mode():
                assert torch.equal(layers(rows), expected)
            assert layers[0].__dict__["forward"] is theirs
        assert torch.equal(layers[2].weight, prunes)


def test_a_single_row_is_multiplied_plainly_where_that_is_faster(monkeypatch):
    """With AVX2 only, unless onto more columns than it has."""
    monkeypatch.setattr(packing, "_AVX2", True)
    called = []
    product = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(
        torch.ops.mkldnn, "_linear_pointwise", lambda *args: called.append(args) or product(*args)
    )
    layers = model()
    with PackedLinears(layers), torch.inference_mode():
        layers(torch.randn(1, 512))
        assert [args[0].shape[-1] for args in called] == [512]
        layers(torch.randn(1, 2, 512))
        assert [args[0].shape[-1] for args in called] == [512, 512, 768]


def test_a_layer_changed_within_the_context_keeps_the_change():
    layers = model()
    with PackedLinears(layers):
        layers[0].forward = theirs = lambda given: given
    assert layers[0].forward is theirs


def test_other_threads_and_autocast_use_the_plain_product():
    layers, rows = model(), torch.randn(2, 512)
    plain, found = layers(rows), []
    with PackedLinears(layers):
        thread = Thread(target=lambda: found.append(layers(rows)))
        thread.start()
        thread.join()
        with torch.autocast("cpu", torch.bfloat16):
            assert layers(rows).dtype == torch.bfloat16
    assert found[0].requires_grad
    assert torch.equal(found[0], plain)


def test_left_alone_after_an_error():
    layers = model()
    try:
        with PackedLinears(layers):
            layers(torch.randn(1, 3))
    except RuntimeError:
        pass
    assert "forward" not in layers[0].__dict__


def test_only_large_layers_of_a_dtype_that_packs_are_packed():
    for layer in (
        nn.Linear(512, 384, dtype=torch.float64),
        nn.Linear(512, 384, dtype=torch.float16),
        nn.Linear(8, 8),
        nn.Embedding(512, 384),
    ):
        with PackedLinears(layer):
            assert "forward" not in layer.__dict__


def test_packed_copies_go_with_their_model():
    layers = model()
    PackedLinears(layers)
    held = len(packing._packed)
    del layers
    gc.collect()
    assert len(packing._packed) == held - 2
