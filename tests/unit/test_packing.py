import gc

import torch
from torch import nn

from easd.engine.models import packing
from easd.engine.models.packing import PackedLinears


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(512, 384), nn.ReLU(), nn.Linear(384, 512, bias=False))


def test_same_products_and_the_model_is_left_as_it_was():
    layers, rows = model(), torch.randn(2, 5, 512)
    plain = layers(rows)
    before = {name: id(value) for name, value in layers.state_dict(keep_vars=True).items()}
    with PackedLinears(layers), torch.inference_mode():
        assert "forward" in layers[0].__dict__
        torch.testing.assert_close(layers(rows), plain.detach(), atol=1e-5, rtol=1e-5)
    assert "forward" not in layers[0].__dict__
    assert before == {name: id(value) for name, value in layers.state_dict(keep_vars=True).items()}
    torch.testing.assert_close(layers(rows), plain, atol=0, rtol=0)


def test_weights_changed_since_are_packed_anew():
    layers, rows = model(), torch.randn(1, 512)
    with PackedLinears(layers), torch.inference_mode():
        layers(rows)
    with torch.no_grad():
        layers[0].weight.mul_(2)
        plain = layers(rows)
    with PackedLinears(layers), torch.inference_mode():
        torch.testing.assert_close(layers(rows), plain, atol=1e-5, rtol=1e-5)


def test_left_alone_after_an_error():
    layers = model()
    try:
        with PackedLinears(layers):
            layers(torch.randn(1, 3))
    except RuntimeError:
        pass
    assert "forward" not in layers[0].__dict__


def test_only_large_float32_layers_are_packed():
    for layer in (
        nn.Linear(512, 384, dtype=torch.float64),
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
