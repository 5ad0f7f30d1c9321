"""What the package says of versions, and what is tested, agree."""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import easd

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pinned(file: str, name: str) -> Version:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}=="))
    return Version(line.removeprefix(f"{name}=="))


def allowed(name: str) -> Requirement:
    (line,) = (line for line in PROJECT["dependencies"] if line.startswith(name))
    return Requirement(line)


def test_the_version_is_the_one_the_changes_and_the_image_name():
    stated = PROJECT["version"]
    assert easd.__version__ == stated, "the environment has another version: make setup"
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = [line for line in changes.splitlines() if line.startswith("## ")]
    newest = next(line for line in headings if line != "## Unreleased")
    assert newest.split()[1] == stated
    image = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]["vllm"]["image"]
    assert image == f"easd-vllm:{stated}"


def test_the_suite_runs_with_the_newest_transformers_that_is_allowed():
    newest = pinned("constraints.txt", "transformers")
    specifier = allowed("transformers").specifier
    assert newest in specifier
    assert Version(f"{newest.major}.{newest.minor + 1}.0") not in specifier


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_the_plugins_own_versions_are_allowed(name):
    assert pinned("constraints-vllm.txt", name) in allowed(name).specifier
