"""What the documentation says can be done can be done, and its site builds."""

import importlib.util
import re
import shlex
import subprocess
import sys
import warnings
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from enumeration import check_law, steps
from http_server import running

import easd
from easd.cli import main
from easd.cli.root import command_line
from easd.config import load_config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    """The page's fenced blocks of these languages; those that include a file are left out."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages and "--8<--" not in text]


def commands(page: Path, *languages: str) -> list[list[str]]:
    """The arguments of every `easd` command in the page's blocks."""
    lines = "".join(blocks(page, *languages)).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("easd ")]
    return [arguments for _, *arguments in words]


def test_the_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    ours = [link for link in links if not link.startswith("https://")]
    assert ours
    assert [link for link in ours if not (ROOT / link).exists()] == []


@cache
def smollm2():
    return easd.load_pair("smollm2")


def readme(names, stack, folder):
    """The second block is about models that the reader has."""
    pair = smollm2()
    names |= {"target": pair.target, "draft": pair.draft}
    names["inputs"] = pair.tokenizer("What is 17 times 6?", return_tensors="pt")
    pair.target.generation_config.max_new_tokens = 8
    stack.callback(setattr, pair.target.generation_config, "max_new_tokens", None)


def evidence(names, stack, folder):
    """The page's run, with other models and a shorter task."""
    run = folder / "runs" / "first"
    command = ["eval", "--pair", "lab-a", "--task", "lab-a:10", "--quiet", "--out", run]
    with pytest.raises(SystemExit):
        main(list(map(str, command)))


def server(names, stack, folder):
    """A server where the page says that one listens; only the port is another."""
    config = load_config(None, {"pair": "smollm2"})
    return {":8000": f":{stack.enter_context(running(smollm2(), config)).port}"}


@pytest.fixture(autouse=True)
def rules_of_pages_stay_there():
    """A rule is registered by being defined, the one of a page too."""
    before = dict(easd.RULES)
    yield
    easd.RULES.clear()
    easd.RULES.update(before)


PREPARED = {"README.md": readme, "evidence.md": evidence, "server.md": server}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    # Dataclasses look their module up.
    monkeypatch.setitem(sys.modules, "page", type(sys)("page"))
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Those of smollm2's own generation settings.
        other = PREPARED.get(page.name, lambda *_: {})(names, stack, tmp_path) or {}
        for text in blocks(page, "python"):
            for ours, theirs in other.items():
                text = text.replace(ours, theirs)
            exec(compile(text, str(page), "exec"), names)
    if page.name == "README.md":
        assert capsys.readouterr().out == blocks(page, "text")[0]


def test_the_rule_of_the_page_has_the_law_it_says():
    names = {"__name__": "page"}
    sys.modules["page"] = type(sys)("page")
    try:
        exec(blocks(DOCS / "writing-a-rule.md", "python")[0], names)
    finally:
        del sys.modules["page"]
    for _, step in steps():
        check_law(names["Unison"](), step)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page, "sh", "")], ids=lambda page: page.name
)
def test_the_commands_of_a_page_exist(page):
    for name, *arguments in commands(page, "sh", ""):
        command_line([name]).parse_args([name, *arguments])


def test_ten_minutes_print_what_the_page_shows(easd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "96")
    done = ["".join(easd(*words)) for words in commands(DOCS / "start.md", "sh")]
    done.append((tmp_path / "runs" / "mine" / "report" / "report.md").read_text())
    _install, *shown = blocks(DOCS / "start.md", "text")
    said = without_spaces("".join(done))
    for line in "".join(shown).splitlines():
        for part in line.split("..."):
            assert without_spaces(part) in said, line
    assert "<html" in (tmp_path / "first.html").read_text()


def without_spaces(text: str) -> str:
    """Lines are broken at other places where a window is as wide as the page."""
    return re.sub(r"[\s\u2500-\u257f\\]", "", text)


@pytest.mark.parametrize("name", ["make_http", "make_columns"])
def test_generated_pages_are_current(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), f"stale; run python docs/{name}.py"


def test_the_mathematics_has_a_law_for_every_rule():
    page = (DOCS / "mathematics.md").read_text()
    assert [name for name in easd.RULES if f"`{name}`" not in page] == []


def test_the_papers_have_every_rule_that_was_published():
    page = (DOCS / "papers.md").read_text()
    published = [name for name, kind in easd.RULES.items() if kind.source]
    assert published
    assert [name for name in published if f"`{name}`" not in page] == []


def test_the_reference_has_every_public_name_and_rule():
    pages = "".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    documented = set(re.findall(r"^::: \S+\.(\w+)$", pages, re.MULTILINE))
    wanted = {*easd.__all__, *(kind.__name__ for kind in easd.RULES.values())}
    assert wanted <= documented


def test_the_site_builds_without_a_broken_link_and_asks_nothing_of_other_hosts(tmp_path):
    pytest.importorskip("mkdocs", reason="the documentation's tool is missing: make setup")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked = re.compile(r"""(?:src="|url\(["']?|<link [^>]*href=")(?:https?:)?//""")
    for path in tmp_path.rglob("*"):
        if path.suffix in {".html", ".css"}:
            assert not asked.search(path.read_text(encoding="utf-8")), path
