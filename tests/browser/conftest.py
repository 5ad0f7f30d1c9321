"""A real browser, and real traces of the lab pair for it to show."""

import shutil
from dataclasses import replace

import pyarrow as pa
import pytest
from traces import traced

from easd.config import RunConfig
from easd.inspect.page import write_page
from easd.pairs.lab import problems
from easd.pairs.loading import load_pair

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Without these, Chromium calls home at every start.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PROMPTS = [problem.prompt for problem in problems("lab-a", 6, seed=0)]
# Warm and long enough that every outcome comes up.
SETTINGS = {
    "seed": 1,
    "coupling": "shared",
    "temperature": 1.5,
    "min_new_tokens": 40,
    "max_new_tokens": 44,
}
RULES = {
    "easd": {"name": "easd", "tau_h": 0.3, "tau_o": 0.4},
    "speculative": {"name": "speculative"},
    "target": {"name": "target"},
}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "browser":
            item.add_marker("browser")


@pytest.fixture(scope="session")
def chromium():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; Debian's package is `chromium`")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Opens a URL; what the page's console complains of fails the test."""
    contexts, complaints = [], []

    def open_page(url, *, width=1360, height=900, scheme="light", **options):
        size = {"width": width, "height": height}
        context = chromium.new_context(viewport=size, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.requests, page.complaints = [], complaints
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text))
        page.set_default_timeout(10_000)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="session")
def traces(tmp_path_factory):
    """The same prompts under three rules with shared noise, by name of the rule."""
    found = {}
    for name, rule in RULES.items():
        folder = tmp_path_factory.mktemp(name) / "run"
        found[name] = trace_of("lab", rule, folder)
    return found


@pytest.fixture(scope="session")
def two_tokenizers(tmp_path_factory):
    """A trace of the pool, and a draft that reads numbers as one token."""
    rule = {"name": "pool-everywhere", "a": 1.2, "b": 0.5}
    return trace_of("lab-t", rule, tmp_path_factory.mktemp("lab-t") / "run")


def trace_of(name, rule, folder):
    config = RunConfig.from_dict({"pair": name, "rule": rule, **SETTINGS})
    return traced(load_pair(name), config, folder, PROMPTS)[1]


@pytest.fixture
def show(visit, tmp_path):
    """Writes traces as a page and opens it."""

    def open_file(*traces, **options):
        path = tmp_path / "page.html"
        write_page(traces, path)
        return visit(path.as_uri(), **options)

    return open_file


def retold(trace, texts):
    """The trace as if its tokens read like these texts, one after the other."""
    rows = trace.tokens.num_rows
    column = pa.array((texts * (rows // len(texts) + 1))[:rows])
    place = trace.tokens.schema.get_field_index("text")
    tokens = trace.tokens.set_column(place, trace.tokens.schema.field("text"), column)
    ids = trace.vocabulary["token"].to_pylist()
    words = [texts[i % len(texts)] for i in range(len(ids))]
    vocabulary = pa.table([ids, words], trace.vocabulary.schema)
    return replace(trace, tokens=tokens, vocabulary=vocabulary)


@pytest.fixture(scope="session")
def hostile(traces):
    return lambda texts: retold(traces["easd"], texts)


@pytest.fixture(scope="session")
def violations():
    """What axe has against a page: rule and elements."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def found(page):
        rules = axe.run(page).response["violations"]
        return [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in rules]

    return found
