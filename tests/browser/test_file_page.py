"""The page in Chromium: what it shows, that it shows nothing else, and that it stays fluid."""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from easd.core.gate import Gate
from easd.errors import visible
from easd.runs.schema import EMITTED, EXAMINED

expect = pytest.importorskip("playwright.sync_api").expect
TOP_N = 5
HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    " \"quoted' & <b>bold</b>",
    "\u202eevil\u2066",
    "\ufffd",
    "\x1b[2J",
    "🙂",
    "שלום",
    "zero\u200bwidth",
    "",
    "   ",
    "\n\n",
    "\t",
]


def rows_of(trace, sample=0):
    return [row for row in trace.tokens.to_pylist() if row["sample"] == sample]


def emitted(trace, sample=0):
    return [row for row in rows_of(trace, sample) if row["outcome"] in EMITTED]


def tokens(page, panel=0):
    return page.locator(".panel").nth(panel).locator(".t")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1360])
def test_axe_finds_nothing(show, traces, violations, scheme, width):
    page = show(*traces.values(), width=width, scheme=scheme)
    for summary in page.locator("summary").all():
        summary.click()
    tokens(page).nth(4).focus()
    assert page.locator("#card h2").count() == 1
    assert violations(page) == []
    page.locator("#theme").click()
    assert violations(page) == []


@pytest.mark.parametrize("width", [360, 768, 1920])
def test_nothing_runs_out_at_the_side(show, hostile, width):
    page = show(hostile([*HOSTILE, "long" * 100]), width=width)
    tokens(page).nth(2).focus()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_no_request_leaves_the_file(show, traces):
    page = show(*traces.values())
    tokens(page).nth(3).hover()
    page.locator("#theme").click()
    assert {url.split(":")[0] for url in page.requests} <= {"file", "data"}
    policy = page.locator("meta[http-equiv]").get_attribute("content")
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    with pytest.raises(Exception, match="Failed to fetch"):
        page.evaluate("fetch('http://127.0.0.1:9/')")
    assert "Content Security Policy" in page.complaints[0]
    page.complaints.clear()


def test_every_token_shows_with_its_outcome(show, traces):
    trace = traces["easd"]
    page = show(trace)
    classes = [element.get_attribute("class").split()[1] for element in tokens(page).all()]
    expected, refused = [], ""
    for row in rows_of(trace):
        if row["outcome"] in ("rejected", "penalised"):
            refused = row["outcome"]
        if row["outcome"] in EMITTED:
            is_penalty = row["outcome"] == "replacement" and refused == "penalised"
            expected.append("penalised" if is_penalty else row["outcome"])
    assert classes == expected
    assert {"accepted", "penalised", "replacement"} <= set(classes)


def test_marks_tell_outcomes_apart_without_colour(show, traces):
    page = show(traces["easd"])
    mark = (
        "(kind) => getComputedStyle(document.querySelector(`#panels .${kind}`), '::before').content"
    )
    assert page.evaluate(mark, "replacement").startswith('"~"')
    assert page.evaluate(mark, "accepted") == "none"
    assert page.locator("#panels .penalised s").count() > 0


def test_undrafted_text_is_not_called_bonus(show, traces):
    page = show(traces["target"])
    kinds = {element.get_attribute("class") for element in tokens(page).all()}
    assert kinds == {"t drawn"}
    assert "examines no draft tokens" in page.locator(".caught-line").inner_text()


@pytest.mark.parametrize(("tau_h", "shared"), [(0.0, 0), (0.3, 2), (0.71, 3), (1.2, 4), (0.5, 5)])
def test_sliders_catch_what_the_gate_would(show, traces, tau_h, shared):
    trace = traces["easd"]
    page = show(trace)
    slide(page, "#tau-o", shared)
    slide(page, "#tau-h", tau_h)
    every = [row for row in trace.tokens.to_pylist() if row["outcome"] in EXAMINED]
    for rows, scope in (
        ([row for row in every if row["sample"] == 0], r"catches (\d+) of (\d+)"),
        (every, r"all texts (\d+) of (\d+)"),
    ):
        caught = sum(np.logical_and.reduce(list(met(rows, tau_h, shared).values())))
        line = page.locator(".caught-line").inner_text()
        assert re.search(scope, line).groups() == (str(caught), str(len(rows)))
    alone = met([row for row in every if row["sample"] == 0], tau_h, shared)
    words = re.search(r"unsure (\d+), target unsure (\d+), they agree (\d+)", line).groups()
    assert [int(word) for word in words] == [found.sum() for found in alone.values()]


def test_the_recorded_thresholds_catch_where_the_gate_was_open(show, traces):
    trace = traces["easd"]
    page = show(trace)
    opened = sum(row["gate"] for row in rows_of(trace) if row["outcome"] in EXAMINED)
    assert page.locator("#panels .t.caught").count() == opened > 0
    slide(page, "#tau-h", page.locator("#tau-h").get_attribute("max"))
    assert page.locator("#panels .t.caught").count() == 0
    page.locator("#recorded").click()
    expect(page.locator("#panels .t.caught")).to_have_count(int(opened))


def test_an_entropy_at_the_threshold_is_not_above_it(show, traces):
    trace = traces["easd"]
    entropies = [row["draft_entropy"] for row in rows_of(trace) if row["outcome"] in EXAMINED]
    tau_h = sorted(entropies)[len(entropies) // 2]
    rule = {**trace.run["config"]["rule"], "tau_h": tau_h, "conditions": ["draft_entropy"]}
    run = {**trace.run, "config": {**trace.run["config"], "rule": rule}}
    page = show(replace(trace, run=run))
    above = sum(entropy > tau_h for entropy in entropies)
    assert f"catches {above} of {len(entropies)} " in page.locator(".caught-line").inner_text()


def test_hover_shows_what_a_penalty_removed(show, traces):
    trace = traces["easd"]
    page = show(trace)
    rows = rows_of(trace)
    refused = next(row for row in rows if row["outcome"] == "penalised")
    instead = next(
        row
        for row in rows
        if row["outcome"] == "replacement" and row["position"] == refused["position"]
    )
    page.locator("#panels .t.penalised").first.hover()
    card = page.locator("#card")
    assert "penalised, replaced" in card.locator("h2").inner_text()
    removed, came = card.locator(".numbers tbody tr").all_inner_texts()
    assert removed.split() == ["removed", refused["text"].strip(), *probabilities(refused)]
    assert came.split() == ["instead", instead["text"].strip(), *probabilities(instead)]
    for model in ("draft", "target"):
        entropy = f"{model} entropy {refused[f'{model}_entropy']:.2f} nats"
        assert entropy in " ".join(card.inner_text().split())
    assert refused["law_top_probs"] != refused["target_top_probs"]
    for source in ("draft", "target", "law"):
        shown = card.locator(f".top.{source} td").all_inner_texts()
        assert shown == [probability(value) for value in refused[f"{source}_top_probs"]]
    assert f"{round(refused['overlap'] * TOP_N)} of 5 shared" in card.inner_text()
    assert f"uniform {refused['uniform']:.3f}" in card.inner_text()


def test_the_card_shows_the_rules_distribution_and_what_the_drafts_tokens_came_from(
    show, two_tokenizers
):
    page = show(two_tokenizers)
    rows = [row for row in rows_of(two_tokenizers) if row["outcome"] == "accepted"]
    assert any(len(row["draft_top_origins"][0]) > 1 for row in rows)
    card = page.locator("#card")
    for row in rows[:5]:
        page.locator("#panels .t.accepted").nth(rows.index(row)).focus()
        rule = card.locator(".top.law td").all_inner_texts()
        assert rule == [probability(value) for value in row["law_top_probs"]]
        lines = card.locator(".origins tr").all_inner_texts()
        for line, texts, shares in zip(
            lines, row["draft_top_origins"], row["draft_top_origin_shares"], strict=True
        ):
            own = [f"{text.strip()} {share:.1%}" for text, share in zip(texts, shares, strict=True)]
            assert line.split("\t")[1].replace(" %", "%") == ", ".join(own)


def test_a_text_can_be_read_with_the_keyboard_alone(show, traces):
    trace = traces["easd"]
    page = show(trace)
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('t')"):
            break
    at = lambda: int(page.evaluate("document.activeElement.dataset.i"))  # noqa: E731
    assert at() == 0
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert at() == 2
    assert "token 3 of" in page.locator("#card").inner_text()
    page.keyboard.press("ArrowLeft")
    assert at() == 1
    page.keyboard.press("End")
    assert at() == len(emitted(trace)) - 1
    page.keyboard.press("ArrowRight")
    assert at() == len(emitted(trace)) - 1
    page.keyboard.press("Home")
    page.keyboard.press("n")
    assert page.locator("#panels .t:focus").get_attribute("class").split()[1] in (
        "penalised",
        "replacement",
    )
    expect(page.locator("#status")).to_have_text(re.compile("draft"))
    assert page.locator("#panels .t[tabindex='0']").count() == 1
    page.keyboard.press("Shift+Tab")
    page.locator("#tau-h").focus()
    before = page.locator("#tau-h-value").inner_text()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tau-h-value")).not_to_have_text(before)


def test_arrows_up_and_down_change_the_line(show, traces):
    page = show(traces["easd"], width=360)
    tokens(page).nth(0).focus()
    top = lambda: page.evaluate("document.activeElement.getBoundingClientRect().top + scrollY")  # noqa: E731
    first = top()
    page.keyboard.press("ArrowDown")
    assert top() > first
    page.keyboard.press("ArrowUp")
    assert top() == first


def test_the_threshold_is_drawn_at_the_same_height_in_every_line(show, traces):
    page = show(traces["easd"], width=360)
    tops, pitch = page.evaluate(
        """() => {
          const row = document.querySelector("#panels .row");
          const tops = [...row.querySelectorAll(".t")].map((t) => t.getClientRects()[0].top);
          const size = getComputedStyle(row, "::after").backgroundSize;
          return [[...new Set(tops)], Number(size.match(/([0-9.]+)px$/)[1])];
        }"""
    )
    assert len(tops) > 2
    assert pitch == int(pitch)  # Browsers round the size of a repeated background.
    assert {after - before for before, after in pairwise(tops)} == {pitch}


def test_the_first_difference_is_marked(show, traces):
    systems = [traces["easd"], traces["speculative"], traces["target"]]
    page = show(*systems)
    for sample in range(6):
        page.locator("#texts").select_option(str(sample))
        texts = [[row["token"] for row in of_request(trace, sample)] for trace in systems]
        for place in (1, 2):
            panel = page.locator(".panel").nth(place)
            at = first_difference(texts[0], texts[place])
            if at is None:
                assert "no difference from easd" in panel.inner_text()
                assert panel.locator(".difference").count() == 0
                continue
            panel.get_by_role("button", name="First difference").click()
            index = page.evaluate("document.activeElement.dataset.i")
            assert int(index) == min(at, len(texts[place]) - 1)
            assert panel.locator(".difference").count() == 1
    assert any(
        first_difference(*[[r["token"] for r in of_request(t, s)] for t in systems[:2]]) is not None
        for s in range(6)
    )


def test_the_same_rule_twice_has_two_names(show, traces):
    page = show(traces["easd"], traces["easd"])
    second = page.locator(".panel").nth(1)
    assert second.locator("h2").inner_text().startswith("easd 2 ")
    assert second.get_by_text("no difference from easd", exact=True).count() == 1


def test_differences_by_chance_are_called_so(show, traces):
    run = traces["target"].run
    independent = {**run, "config": {**run["config"], "coupling": "maximal"}}
    page = show(traces["easd"], replace(traces["target"], run=independent))
    for text in range(6):
        page.locator("#texts").select_option(str(text))
        for panel in page.locator(".panel").all():
            differs = panel.get_by_role("button", name="First difference").count()
            assert panel.get_by_text("noise is not shared").count() == differs
            if differs:
                return
    raise AssertionError("all texts are equal")


def test_texts_are_shown_and_never_obeyed(show, hostile):
    page = show(hostile(HOSTILE))
    shown = "".join(page.locator(".text .row").all_text_contents())
    assert page.title() == "easd"
    assert page.locator("#panels img, #panels script, #panels b").count() == 0
    for text in HOSTILE[:9]:
        assert visible(text).strip() in shown
    assert "\u202e" not in page.content()
    for index in range(tokens(page).count()):
        tokens(page).nth(index).focus()
    assert page.title() == "easd"


def test_unseen_characters_are_spelt_out_as_in_python(show, traces):
    trace = traces["easd"]
    every = "".join(map(chr, [*range(0x2100), 0xFEFF, 0xFFFD, 0x1F642]))
    column = pa.array([every] * trace.samples.num_rows)
    place = trace.samples.schema.get_field_index("prompt")
    samples = trace.samples.set_column(place, trace.samples.schema.field("prompt"), column)
    page = show(replace(trace, samples=samples))
    assert page.locator("#prompt pre").text_content() == visible(every)


def test_a_text_cut_off_by_the_end_of_the_run_shows(show, traces):
    trace = traces["easd"]
    page = show(replace(trace, samples=trace.samples.slice(0, 0)))
    assert tokens(page).count() == len(emitted(trace))
    assert "cut off before it ended" in page.locator(".state").inner_text()


def test_a_theme_can_be_chosen(show, traces):
    page = show(traces["easd"], scheme="dark")
    colour = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    dark = colour()
    page.locator("#theme").click()
    assert colour() != dark
    assert page.locator("#theme").get_attribute("aria-pressed") == "false"


def test_four_thousand_tokens_stay_fluid(show, traces):
    page = show(long(traces["easd"], 4000))
    assert tokens(page).count() >= 4000
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    slides = [i / 20 for i in range(20)]
    assert script_ms(session, lambda: [slide(page, "#tau-h", to) for to in slides]) / 20 < 50
    tokens(page).nth(0).scroll_into_view_if_needed()
    boxes = [tokens(page).nth(index).bounding_box() for index in range(40)]
    hover = lambda: [page.mouse.move(box["x"] + 2, box["y"] + 4) for box in boxes]  # noqa: E731
    assert script_ms(session, hover) / 40 < 16


def met(rows, tau_h, shared):
    column = lambda name: np.array([row[name] for row in rows], dtype=np.float32)  # noqa: E731
    return Gate(tau_h=tau_h, tau_o=shared / TOP_N, top_n=TOP_N).met(
        {
            "draft_entropy": column("draft_entropy"),
            "target_entropy": column("target_entropy"),
            "shared_top": np.rint(column("overlap") * TOP_N),
        }
    )


def slide(page, slider, value):
    page.locator(slider).evaluate(
        """async (slider, value) => {
          slider.value = value;
          slider.dispatchEvent(new Event("input", { bubbles: true }));
          await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
        }""",
        str(value),
    )


def probability(value):
    return "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def probabilities(row):
    return [probability(row[f"{source}_prob"]) for source in ("draft", "target", "law")]


def of_request(trace, number):
    return [
        row
        for row in trace.tokens.to_pylist()
        if row["request"] == number and row["outcome"] in EMITTED
    ]


def first_difference(one, other):
    for index, (mine, yours) in enumerate(zip(one, other, strict=False)):
        if mine != yours:
            return index
    return min(len(one), len(other)) if len(one) != len(other) else None


def long(trace, least):
    """The trace's texts as one text, over and over."""
    rows = trace.tokens.to_pylist()
    per_round = sum(row["outcome"] in EMITTED for row in rows)
    steps = max(row["step"] for row in rows) + 1
    texts = sorted(rows, key=lambda row: row["sample"])
    joined = [
        {**row, "sample": 0, "request": 0, "step": row["step"] + steps * (row["sample"] + 6 * turn)}
        for turn in range(least // per_round + 1)
        for row in texts
    ]
    tokens = pa.Table.from_pylist(joined, schema=trace.tokens.schema)
    return replace(trace, tokens=tokens, samples=trace.samples.slice(0, 1))


def script_ms(session, act):
    def spent():
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(one["value"] for one in metrics if one["name"] == "ScriptDuration")

    before = spent()
    act()
    return 1000 * (spent() - before)
