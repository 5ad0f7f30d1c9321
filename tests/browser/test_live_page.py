"""The live page against the real server: type, stream, stop, compare, mend a mistake."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager

import pytest

SLOW = 60_000  # ms; other work may share the machine.

expect = pytest.importorskip("playwright.sync_api").expect


@contextmanager
def serving(*arguments, **environment):
    """A server on a free port; yields its address."""
    command = [sys.executable, "-m", "easd", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://\S+", line):
                yield found[0]
                break
        else:
            raise AssertionError("".join(lines))
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close()


@pytest.fixture(scope="module")
def address():
    with serving("--pair", "smollm2") as url:
        yield url


@pytest.fixture
def live(visit, address):
    def open_live(**options):
        page = visit(address, **options)
        page.set_default_timeout(SLOW)
        expect(page.locator("#ask select")).not_to_be_empty()
        return page

    return open_live


def decode(page, prompt="List three colours.", tokens=24, compare=()):
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    page.get_by_label("Maximum new tokens").fill(str(tokens))
    for name in compare:
        page.get_by_role("checkbox", name=name, exact=True).check()
    page.get_by_role("button", name="Decode").click()


def finished(page, panels=1):
    expect(page.locator(".figures")).to_have_count(panels, timeout=SLOW)
    expect(page.get_by_role("button", name="Stop")).to_be_disabled(timeout=SLOW)


def test_a_prompt_is_decoded_before_ones_eyes(live, address):
    page = live()
    page.get_by_label("tau_h").fill("0.2")
    page.get_by_label("tau_o").fill("0.2")
    decode(page)
    expect(page.locator(".panel .t").nth(2)).to_be_visible(timeout=SLOW)
    finished(page)
    assert page.locator(".panel .t").count() <= 24
    assert "tau_h 0.2 nats" in page.locator(".panel h2").inner_text()
    assert page.locator("#panels .t.caught").count() > 0
    page.locator("#panels .t").nth(1).hover()
    assert page.locator("#card .top.target tr").count() == 5
    page.locator("#prompt summary").click()
    assert "List three colours." in page.locator("#prompt pre").inner_text()
    assert "acceptance rate" in page.locator("#status").inner_text()
    assert all(url.startswith((address, "data:")) for url in page.requests)


def test_lossless_rules_write_the_same_text(live):
    page = live()
    page.get_by_label("Rule").select_option("speculative")
    decode(page, compare=["target"])
    finished(page, panels=2)
    texts = [panel.locator(".t").all_text_contents() for panel in page.locator(".panel").all()]
    assert texts[0] == texts[1]
    assert "no difference from speculative" in page.locator(".panel").nth(1).inner_text()


def test_decoding_can_be_stopped_and_begun_again(live):
    page = live()
    decode(page, "Write a long story.", tokens=400)
    expect(page.locator(".panel .t").nth(4)).to_be_attached(timeout=SLOW)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_have_text("stopped")
    count = page.locator(".panel .t").count()
    page.wait_for_timeout(1500)
    assert page.locator(".panel .t").count() == count < 400
    decode(page, tokens=4)
    finished(page)
    assert page.locator(".panel .t").count() <= 4


def test_a_mistake_is_told_in_the_servers_words(live):
    page = live()
    page.get_by_label("tau_o").fill("7")
    decode(page)
    expect(page.locator("#problem")).to_contain_text("tau_o = 7")
    assert "400" in page.complaints[0]  # The browser logs every refused request.
    page.complaints.clear()
    page.get_by_label("tau_o").fill("0.8")
    decode(page, tokens=4)
    finished(page)
    expect(page.locator("#problem")).to_be_empty()


def test_the_keyboard_is_enough(live):
    page = live()
    page.get_by_role("textbox", name="Prompt").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("Say hello.")
    for _ in range(20):
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.name || document.activeElement.textContent")
        if focused == "max_tokens":
            page.keyboard.press("Control+A")
            page.keyboard.type("8")
        if focused == "Decode":
            break
    page.keyboard.press("Enter")
    finished(page)
    page.locator("#recorded").focus()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('t')"):
            break
    page.keyboard.press("ArrowRight")
    assert "token 2 of" in page.locator("#card").inner_text()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1360), ("dark", 360)])
def test_axe_finds_nothing(live, violations, scheme, width):
    page = live(scheme=scheme, width=width)
    assert violations(page) == []
    decode(page, tokens=12, compare=["speculative"])
    finished(page, panels=2)
    page.locator("#panels .t").nth(1).focus()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_policy_allows_the_pages_own_code_alone(visit, address):
    page = visit("about:blank")
    policy = page.goto(address).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page.evaluate(
        """const script = document.createElement("script");
        script.text = "window.ran = 1";
        document.body.append(script);"""
    )
    assert page.evaluate("window.ran") is None
    assert "Content Security Policy" in page.complaints[0]
    page.complaints.clear()


@pytest.fixture(scope="module")
def lab_address():
    with serving("--pair", "lab-a") as url:
        yield url


def test_a_small_pair_decodes_its_own_prompt_at_once(visit, lab_address):
    """The first click works: prompt, chat and number of tokens are the pair's."""
    page = visit(lab_address)
    expect(page.locator("#ask select")).not_to_be_empty()
    assert "?" in page.get_by_role("textbox", name="Prompt").input_value()
    assert not page.get_by_label("as a chat message").is_checked()
    page.get_by_role("button", name="Decode").click()
    finished(page)
    expect(page.locator("#problem")).to_be_empty()
    assert page.locator(".panel .t").count() > 2


def test_after_an_error_the_page_is_as_before(visit, lab_address):
    page = visit(lab_address)
    expect(page.locator("#ask select")).not_to_be_empty()
    page.get_by_label("Maximum new tokens").fill("999")
    page.get_by_role("button", name="Decode").click()
    expect(page.locator("#problem")).to_contain_text("context window")
    expect(page.locator("#shown")).to_be_hidden()
    page.get_by_label("Maximum new tokens").fill("")  # As many as there is room for.
    page.get_by_role("button", name="Decode").click()
    finished(page)
    shown = page.locator("#panels").inner_text()
    page.get_by_label("Maximum new tokens").fill("999")
    page.get_by_role("button", name="Decode").click()
    expect(page.locator("#problem")).to_contain_text("context window")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    assert page.locator("#panels").inner_text() == shown
    assert len(page.complaints) == 2  # The browser logs every refused request.
    page.complaints.clear()


def test_a_key_is_asked_for_where_one_is_needed(visit):
    with serving("--pair", "lab", EASD_API_KEY="sesame") as url:
        page = visit(url)
        expect(page.locator("#problem")).not_to_be_empty()
        page.complaints.clear()
        page.get_by_label("API key").fill("sesame")
        page.get_by_label("API key").press("Tab")
        expect(page.locator("#ask select")).not_to_be_empty()
        page.get_by_label("as a chat message").uncheck()
        decode(page, "1 + 2 ?", tokens=4)
        finished(page)
