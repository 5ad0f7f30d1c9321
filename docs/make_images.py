"""Draw docs/images/page-*.png anew: `python docs/make_images.py`.

Takes Chromium, Playwright and Pillow. Decodes with three rules of `smollm2`, a minute in all.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).with_name("images")
RULES = {"easd": ["--tau-h", "1"], "speculative": [], "target": []}
STORY = "Write a short story about a lighthouse keeper who receives a letter."
SUM = "A baker makes 12 trays of 8 rolls and sells 70 of them. How many rolls are left?"
SAMPLING = ["--temperature", "0.8", "--seed", "3", "--coupling", "shared"]
PENALISED = "#panels .penalised"
MINUTES = 10 * 60_000  # ms, for other work on the machine


def main() -> None:
    """Records the runs and draws every image."""
    with TemporaryDirectory() as folder, sync_playwright() as started:
        runs = recorded(Path(folder))
        browser = started.chromium.launch(
            executable_path=which("chromium") or which("chromium-browser"), args=["--no-sandbox"]
        )
        one, several = Path(folder) / "one.html", Path(folder) / "several.html"
        easd("inspect", runs[0], "--html", one)
        easd("inspect", *runs, "--html", several)
        draw_one(browser, one.as_uri())
        draw_several(browser, several.as_uri())
        with serving() as address:
            draw_live(browser, address)


def recorded(folder: Path) -> list[Path]:
    """The same prompt under each rule, with shared noise."""
    for rule, fields in RULES.items():
        decoding = ["--rule", rule, *fields, *SAMPLING, "--max-new-tokens", "180"]
        easd("generate", "--pair", "smollm2", *decoding, "--trace", folder / rule, STORY)
    return [folder / rule for rule in RULES]


def easd(*arguments: str | Path) -> None:
    """Runs the command line."""
    command = [sys.executable, "-m", "easd", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def draw_one(browser: Browser, address: str) -> None:
    """The page of one run: wide, with other thresholds, and on a phone."""
    page = opened(browser, address, 1360, 1000)
    page.locator(PENALISED).first.focus()
    page.evaluate("scrollTo(0, 0)")
    save(page, "page-light")

    page = opened(browser, address, 1360, 760, "dark")
    point_at_middle(page)
    slide(page, "#tau-h", 0.5)
    save(page, "page-sliders-dark")

    page = opened(browser, address, 360, 780)
    point_at_middle(page)
    save(page, "page-narrow")
    save(opened(browser, address, 360, 780, "dark"), "page-narrow-dark")


def draw_several(browser: Browser, address: str) -> None:
    """Three systems side by side, where the second text leaves the first."""
    page = opened(browser, address, 1600, 900)
    point_at_middle(page)
    save(page, "page-compare")


def draw_live(browser: Browser, address: str) -> None:
    """Two systems on the live page."""
    page = opened(browser, address, 1360, 900, "dark")
    page.get_by_role("textbox", name="Prompt").fill(SUM)
    page.get_by_label("tau_h").fill("1.2")
    page.get_by_label("Maximum new tokens").fill("48")
    page.get_by_role("checkbox", name="speculative", exact=True).check()
    page.get_by_role("button", name="Decode").click()
    page.locator(".figures").nth(1).wait_for()
    page.wait_for_function(
        "[...document.querySelectorAll('button')].some("
        "each => each.textContent.trim() === 'Stop' && each.disabled)"
    )
    save(page, "page-live-dark")


def opened(browser: Browser, address: str, width: int, height: int, scheme: str = "light") -> Page:
    """A new page with a window of this size."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    page = context.new_page()
    page.set_default_timeout(MINUTES)
    page.goto(address)
    return page


def point_at_middle(page: Page) -> None:
    """Shows the card of a penalised token in the middle of the text."""
    found = page.locator(PENALISED)
    found.nth(found.count() // 2).focus()


def slide(page: Page, slider: str, value: float) -> None:
    """Moves a slider."""
    page.locator(slider).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        value,
    )


def save(page: Page, name: str) -> None:
    """Saves what the window shows, in 256 colours."""
    shown = Image.open(BytesIO(page.screenshot())).convert("RGB")
    shown.quantize(256, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


@contextmanager
def serving() -> Iterator[str]:
    """The address of a server."""
    command = [sys.executable, "-m", "easd", "serve", "--pair", "smollm2", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                yield found[0]
                break
        else:
            raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
