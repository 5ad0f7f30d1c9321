"""The package as an index would have it: what is in it, what its page shows, and that it works."""

import re
import subprocess
import sys
import tomllib
from email import message_from_string
from html.parser import HTMLParser
from pathlib import Path
from zipfile import ZipFile

import installed
import pytest
from installed import run

ROOT = Path(__file__).parents[2]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]

pytestmark = pytest.mark.wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the source distribution, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--installer", "uv", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (found,) = built.glob("easd-*.whl")
    return found


class Links(HTMLParser):
    """What a page's links and pictures lead to, and where its own can end."""

    def __init__(self, page):
        super().__init__()
        self.outside, self.inside, self.places = set(), set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.places.add(f"#{value}")
            elif name in ("href", "src"):
                (self.inside if value.startswith("#") else self.outside).add(value)


def test_an_index_takes_it(built):
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())


def test_every_link_of_its_page_leads_somewhere_outside_the_checkout(wheel):
    from readme_renderer.markdown import render

    with ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(files.read(name).decode())
    text = metadata.get_payload()
    page = render(text, variant="GFM")
    tables = re.findall(r"^\|---", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert page.count("<table>") == len(tables) > 0
    assert "](" not in re.sub("<code>.*?</code>", "", page, flags=re.DOTALL)
    links = Links(page)
    assert links.inside <= links.places
    # Other hosts cannot be asked from here: the page names the project's addresses and no more.
    assert links.outside
    assert links.outside <= set(URLS.values())
    assert metadata.get_all("Project-URL") == [f"{name}, {url}" for name, url in URLS.items()]


def test_it_has_its_notices_presets_and_types(wheel):
    with ZipFile(wheel) as files:
        names = set(files.namelist())
        (notice,) = (name for name in names if name.endswith("licenses/NOTICE"))
        named = re.findall(r"easd/\S+", files.read(notice).decode())
    assert named
    assert names >= {*named, "easd/py.typed", "easd/presets/table1.yaml"}


def test_it_works_with_the_newest_of_everything(wheel, tmp_path):
    venv = tmp_path / "venv"
    uv = Path(sys.executable).with_name("uv")
    run(uv, "venv", "--python", sys.executable, venv)
    commands = venv / "bin"
    install = (uv, "pip", "install", "--python", venv, "-c", ROOT / "constraints.txt")
    run(*install, wheel)
    installed.decode(commands, tmp_path)
    installed.evaluate(commands, tmp_path)

    # Without its extra a command ends with the line that installs it; with it, it works.
    for arguments, extra in ((("report", "run"), "study"), (("serve", "--pair", "lab"), "serve")):
        refused = subprocess.run(
            (commands / "easd", *arguments), capture_output=True, text=True, cwd=tmp_path
        )
        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
        assert f"pip install 'easd[{extra}]'" in refused.stderr
    run(*install, f"{wheel}[study,serve]")
    installed.report(commands, tmp_path)
    installed.serve(commands, tmp_path)
    run(uv, "pip", "check", "--python", venv)
