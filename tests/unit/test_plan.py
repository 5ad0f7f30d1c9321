"""Forecasts: shapes counted from configurations, rates from traces, seconds from both."""

import math
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, Qwen2Config

from easd import EASD, generate, load_pair
from easd.cli.plan import Plan
from easd.config import RunConfig
from easd.core.rules import TargetOnly
from easd.engine.generate import decode, make_requests
from easd.engine.pair import Pair
from easd.engine.record import outcomes
from easd.engine.settings import Settings
from easd.engine.trace import TraceWriter
from easd.errors import ConfigError, ModelError, TraceError
from easd.pairs.smollm2 import ReducedHead
from easd.runs import open_run
from easd.speed.plan import (
    HARDWARE,
    Acceptance,
    CostModel,
    Hardware,
    Shape,
    measure,
    measure_here,
    parse_hardware,
    plan,
)
from easd.speed.plan.hardware import ProductTable
from easd.speed.plan.measure import fixed_and_slope, undisturbed

LARGE = Qwen2Config(
    hidden_size=8192,
    intermediate_size=29568,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=152064,
    tie_word_embeddings=False,
    architectures=["Qwen2ForCausalLM"],
)
SIMPLE = Hardware(
    name="simple",
    memory_gb=100,
    bandwidth_gbs=1000,
    tflops=100,
    bandwidth_share=1,
    flops_share=1,
    layer_us=0,
    step_us=0,
)


def shape(**fields):
    plain = {"parameters": 10**9, "products": 10**9, "width": 2, "layers": 10}
    plain |= {"cached": 0, "attended": 0, "vocab_size": 1}
    return Shape(name="made up", **{**plain, **fields})


def test_a_configuration_is_counted_without_its_weights(tmp_path):
    """Qwen2.5-72B has 72.7 billion weights by its model card, and 8 heads of 128 in 80 layers."""
    LARGE.save_pretrained(tmp_path)
    for name in (tmp_path, tmp_path / "config.json"):
        found = Shape.named(str(name))
        assert found.parameters == pytest.approx(72.7e9, rel=1e-3)
        assert sum(found.matrices) == found.products
        assert (len(found.matrices), found.hidden) == (7 * 80 + 1, 8192)
        assert found.products == found.parameters - 152064 * 8192 - norms_and_biases()
        assert found.cached == 2 * 80 * 8 * 128
        assert found.weight_bytes == 2 * found.parameters


def norms_and_biases():
    return 80 * (2 * 8192 + (64 + 2 * 8) * 128) + 8192


def test_a_loaded_model_is_counted_as_its_configuration(tmp_path):
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    named = Shape.named(str(tmp_path))
    loaded = Shape.of(LlamaForCausalLM(config), "loaded")
    assert replace(loaded, name=named.name, width=2) == named


def test_only_tokens_that_a_reduced_head_knows_are_drawn():
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, vocab_size=50)
    )
    plain = Shape.of(model, "plain")
    model.lm_head = ReducedHead.from_full(model.lm_head.weight, torch.arange(20))
    reduced = Shape.of(model, "reduced")
    assert (plain.vocab_size, reduced.vocab_size) == (50, 20)
    assert plain.products - reduced.products == 30 * 32


def test_mixtures_and_unknown_models_are_refused(tmp_path):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    MixtralConfig(**small, num_attention_heads=2, num_key_value_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="mixture of experts"):
        Shape.named(str(tmp_path))
    with pytest.raises(ModelError, match="no configuration"):
        Shape.named(str(tmp_path / "nothing"))


def test_one_token_costs_its_bytes_and_many_their_arithmetic():
    costs = CostModel(hardware=SIMPLE, target=shape())
    assert costs.forward_seconds(shape(), 1, 1, 0) == pytest.approx(2e9 / 1e12)
    assert costs.forward_seconds(shape(), 1000, 1, 0) == pytest.approx(2e9 * 1000 / 1e14)


def test_context_costs_what_it_leaves_in_the_cache():
    costs = CostModel(hardware=SIMPLE, target=shape())
    heavy = shape(cached=1000)
    assert costs.forward_seconds(heavy, 4, 1, 500) - costs.forward_seconds(
        shape(), 4, 1, 500
    ) == pytest.approx(4 * 500 * 1000 * 2 / 1e12)


def test_devices_share_bytes_and_pay_for_exchanges():
    pair = replace(SIMPLE, devices=2, exchange_us=7)
    one, two = (CostModel(hardware=on, target=shape()) for on in (SIMPLE, pair))
    alone = one.forward_seconds(shape(), 1, 1, 0)
    assert two.forward_seconds(shape(), 1, 1, 0) == pytest.approx(alone / 2 + 10 * 2 * 7e-6)


TABLE = ProductTable(rows=(1, 4), entries=(100, 10_000), seconds=((1, 10), (4, 90)))


@pytest.mark.parametrize(
    ("entries", "rows", "seconds"),
    [
        (100, 1, 1),
        (10_000, 4, 90),
        (1000, 1, 10**0.5),  # halfway between two sizes
        (100, 2, 2),  # halfway between two numbers of rows
        (1, 1, 1),  # a call costs no less
        (20_000, 1, 20),  # twice the bytes
        (10_000, 8, 180),  # twice the arithmetic
    ],
)
def test_measured_products_are_met_where_they_were_measured_and_between(entries, rows, seconds):
    assert TABLE.product(entries, rows) == pytest.approx(seconds)


def test_each_matrix_is_a_product_of_its_own():
    on = replace(SIMPLE, products=TABLE, devices=2)
    assert on.product_seconds((100, 100, 10_000), 4, 1) == pytest.approx((1 + 1 + 10) / 2)


def test_a_table_with_a_hole_is_one_clear_error():
    with pytest.raises(ConfigError, match="2 lists of 2 seconds"):
        replace(TABLE, seconds=((1, 10), (4,)))


def test_a_measured_forward_is_the_sum_of_its_parts():
    on = replace(SIMPLE, layer_us=3, entry_ns=5, forward_us=11, cached_ns=2, products=TABLE)
    measured = shape(matrices=(100, 100), hidden=8, cached=1000)
    products, layers, attention = 2 * 4, 10 * (3e-6 + 4 * 8 * 5e-9), 2 * 300 * 1000 * 2e-9
    forward = CostModel(hardware=on, target=measured).forward_seconds(measured, 2, 2, 300)
    assert forward == pytest.approx(products + layers + attention + 11e-6, rel=1e-9)
    assert forward - products == pytest.approx(layers + attention + 11e-6, rel=1e-6)


def test_drawing_is_paid_for_every_draft_token():
    on = replace(SIMPLE, draw_us=7, draw_ns=2, verify_us=17, verify_ns=3, step_us=13, text_us=19)
    small = shape(products=10, matrices=(10,), vocab_size=1000)
    costs = CostModel(hardware=on, target=small, draft=replace(small, vocab_size=100))
    drawing = 7e-6 + 2 * 100 * 2e-9
    drafting = costs.forward_seconds(small, 2, 1, 0) + drawing
    assert costs.draft_seconds(2, 0) == pytest.approx(drafting)
    rest = costs.forward_seconds(small, 2, 5, 0) + 13e-6 + 5 * 2 * 1000 * 3e-9
    texts = 2 * 5 * 19e-6
    assert costs.step_seconds(2, 4, 0) == pytest.approx(4 * drafting + 17e-6 + rest + texts)


def test_a_line_finds_what_timings_were_made_of():
    amounts = [1, 4, 16, 64]
    assert fixed_and_slope(amounts, [3 + 0.5 * n for n in amounts]) == pytest.approx((3, 0.5))


def test_a_line_never_pays_back():
    """By the best line that stays above zero: through the origin, or level."""
    assert fixed_and_slope([1, 2, 3], [0, 2, 4]) == pytest.approx((0, 16 / 14))
    assert fixed_and_slope([1, 2, 3], [4, 3, 2]) == pytest.approx((3, 0))
    assert fixed_and_slope([1, 2, 3], [-4, -3, -5]) == (0, 0)


def test_interrupted_calls_do_not_count():
    assert undisturbed([2, 2, 2, 2, 900, 900, 900]) == 2


def test_this_machine_is_measured_in_the_units_of_its_forecasts(monkeypatch):
    """Within a factor of 8 however busy the machine is; a wrong unit is a factor of 1000."""
    monkeypatch.setattr(measure, "_TIMING_SECONDS", 0.02)
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1024, num_hidden_layers=6, vocab_size=2000
    )
    model = LlamaForCausalLM(config).eval()
    costs = CostModel(hardware=measure_here(), target=Shape.of(model, "made up"))
    settings = Settings(rule=TargetOnly(), max_new_tokens=40)
    requests = make_requests(Pair.of(model), [[1] * 8] * 4, settings)
    steps = [record.seconds for record in decode(Pair.of(model), requests, settings)]
    forwards = undisturbed([seconds["target"] for seconds in steps])
    rest = undisturbed([seconds["draft"] + seconds["verify"] for seconds in steps])
    forecast = costs.forward_seconds(costs.target, 4, 1, 28)
    assert 1 / 8 < forecast / forwards < 8
    assert 1 / 8 < (costs.step_seconds(4, 0, 28) - forecast) / rest < 8


def test_speculation_pays_by_the_theorem_where_verification_is_free():
    """Theorem 3.8 of arXiv:2211.17192: (1 - a^(g+1)) / ((1 - a) (g c + 1))."""
    on = replace(SIMPLE, tflops=1e12)
    costs = CostModel(hardware=on, target=shape(), draft=shape(products=10**8))
    kept = Acceptance(rates=(0.8,))
    for cell in plan(costs, kept, texts=[1], gammas=[1, 4, 7], context=0)[1:]:
        wanted = (1 - 0.8 ** (cell.gamma + 1)) / ((1 - 0.8) * (cell.gamma * 0.1 + 1))
        assert cell.improvement == pytest.approx(wanted, rel=1e-3)


def test_speculation_stops_paying_where_arithmetic_rules():
    costs = CostModel(hardware=SIMPLE, target=shape(), draft=shape(products=10**8))
    few, many = (
        plan(costs, Acceptance(rates=(0.7,)), texts=[n], gammas=[4], context=0)[1]
        for n in (1, 1000)
    )
    assert few.improvement > 1.5
    assert many.improvement < 0.8


def test_price_is_time_times_devices():
    on = replace(SIMPLE, price=3.6, devices=2)
    (cell,) = plan(
        CostModel(hardware=on, target=shape()),
        Acceptance(rates=()),
        texts=[1],
        gammas=[],
        context=0,
    )
    assert cell.price == pytest.approx(7.2 / 3600 / cell.tokens_per_second * 1e6)


def test_memory_holds_weights_first():
    costs = CostModel(hardware=SIMPLE, target=shape(parameters=44_000_000_000, cached=9 * 10**5))
    assert costs.texts_that_fit(0, 1000) == 1
    assert not plan(costs, Acceptance(rates=()), texts=[2], gammas=[], context=1000)[0].fits


def test_rates_of_a_trace_are_those_of_its_blocks(tmp_path):
    pair = load_pair("lab-a")
    config = RunConfig(pair="lab-a", settings=Settings(gamma=3, rule=EASD(tau_h=0.7)))
    kept, examined = Counter(), Counter()
    with TraceWriter(tmp_path / "run", pair, config) as trace:

        def watch(record):
            trace.add(record)
            for row in outcomes(record):
                for place, name in enumerate(row):
                    kept[place] += name == "accepted"
                    examined[place] += name in ("accepted", "rejected", "penalised")

        problems = [f"{a} + {b} =" for a in range(3) for b in range(4)]
        ids = [pair.tokenizer(text)["input_ids"] for text in problems]
        generate(
            *(pair.target, pair.draft, ids),
            settings=replace(config.settings, max_new_tokens=20),
            on_step=watch,
        )
    rates = Acceptance.of(open_run(tmp_path / "run")).rates
    assert rates == pytest.approx([kept[place] / examined[place] for place in range(3)])


def test_a_trace_without_a_draft_is_one_clear_error(tmp_path):
    pair = load_pair("lab-a")
    settings = Settings(rule=TargetOnly(), max_new_tokens=3)
    config = RunConfig(pair="lab-a", settings=settings)
    with TraceWriter(tmp_path / "run", pair, config) as trace:
        generate(pair.target, None, [[1, 2]], settings=settings, on_step=trace.add)
    with pytest.raises(TraceError, match="nothing was drafted"):
        Acceptance.of(open_run(tmp_path / "run"))


def test_a_device_by_name_by_number_and_by_file(tmp_path):
    assert parse_hardware("h100:8", 2.5) == replace(HARDWARE["h100"], devices=8, price=2.5)
    path = tmp_path / "mine.yaml"
    values = {"name": "mine", "memory_gb": 16, "bandwidth_gbs": 20, "tflops": 0.5}
    products = {"rows": [1, 4], "entries": [100, 10_000], "seconds": [[1, 10], [4, 90]]}
    path.write_text(yaml.safe_dump({**values, "products": products}))
    assert parse_hardware(str(path)).products == TABLE


@pytest.mark.parametrize(
    ("text", "says"),
    [("h99", "no device known"), ("h100:0", "no number"), ("h100:x", "no number")],
)
def test_unknown_devices_are_one_clear_error(text, says):
    with pytest.raises(ConfigError, match=says):
        parse_hardware(text)


def test_a_file_with_another_field_is_one_clear_error(tmp_path):
    path = tmp_path / "mine.yaml"
    for text in ("name: mine\nspeed: 3\n", "name: mine\nproducts: {rows: [1]}\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="describes no hardware"):
            parse_hardware(str(path))


def test_rates_go_on_beyond_the_last_place_seen():
    kept = Acceptance(rates=(0.9, 0.5))
    assert kept.emitted(0) == 1
    assert kept.emitted(3) == pytest.approx(1 + 0.9 + 0.45 + 0.225)
    with pytest.raises(ConfigError, match="no share"):
        Acceptance(rates=(math.nan,))


@pytest.mark.parametrize("gamma", [0, 4])
def test_the_devices_that_are_needed_are_the_fewest_that_do(gamma):
    costs = CostModel(
        hardware=SIMPLE,
        target=shape(parameters=120_000_000_000, cached=10**5, vocab_size=10**5),
        draft=shape(parameters=8_000_000_000, cached=10**4),
    )
    count = costs.devices_needed(8, gamma, 1000)
    assert count is not None
    on, fewer = (replace(costs, hardware=replace(SIMPLE, devices=n)) for n in (count, count - 1))
    assert on.texts_that_fit(gamma, 1000) >= 8 > fewer.texts_that_fit(gamma, 1000)
    assert on.missing_bytes(8, gamma, 1000) <= 0 < fewer.missing_bytes(8, gamma, 1000)


def test_where_nothing_fits_the_plan_says_what_is_missing(tmp_path, capsys):
    LARGE.save_pretrained(tmp_path)
    config = str(tmp_path)
    asked = Plan(target=config, draft=config, on="h100", acceptance=0.8, texts=(1,), gammas=(3,))
    asked.run()
    out = capsys.readouterr().out
    assert re.search(
        r"nothing fits: 1 x h100 offers 72 GB .* lacks [\d.]+ GB and fits on 3 of", out
    )
    assert "best gamma" not in out
    replace(asked, on="h100:5").run()
    assert "best gamma" in capsys.readouterr().out
