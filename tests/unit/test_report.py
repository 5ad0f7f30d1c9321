"""The report: what it says, that it stands alone, and that texts of models cannot harm it."""

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from evaluations import EASD, Evaluation, graded, rule_of

from easd.errors import ConfigError, TraceError
from easd.report import write_report

RIGHT, WRONG = True, False
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Tags with their attributes, all text, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def traced(made, system="easd"):
    """Adds tokens of every sample: a penalty in the first, and entropies that grow."""
    for sample in [s for s in made.samples if s["system"] in (system, "target")]:
        index = sample["index"]
        for position, token in enumerate(sample["token_ids"]):
            entropy = 0.1 + 0.05 * index + 0.2 * position
            values = {"token": token, "target_entropy": entropy, "draft_entropy": 2 * entropy}
            made.token(sample["system"], sample["task"], index, position, "accepted", **values)
        if sample["system"] == system and index == 0:
            sample["penalised"] = 1
            sample["gate_open"] = 1.0
            made.token(system, sample["task"], index, 7, "penalised", token=2, overlap=1.0)
            made.token(system, sample["task"], index, 7, "replacement", token=9)
    return made


def study():
    """Three systems, and a gate that mostly hurts."""
    grades = [index % 4 != 0 for index in range(40)]
    hurt = [grade and index % 3 != 0 for index, grade in enumerate(grades)]
    hurt[0] = True
    return traced(graded({"target": grades, "speculative": grades, "easd": hurt}))


def read(out):
    return (out / "report.html").read_text(encoding="utf-8")


def answers(page, part, section):
    """The text of one section."""
    found = re.search(rf'<section id="{part}-{section}".*?</section>', page, re.DOTALL)
    assert found, f"no section {section}"
    return " ".join(Page(found[0]).text)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    assert write_report([study().run()], out) == out / "report.html"
    return read(out)


def test_the_page_needs_nothing_else(page):
    parsed = Page(page)
    assert not parsed.open
    assert not parsed.all("script")
    assert not parsed.all("link")
    assert not parsed.all("img")
    links = [a["href"] for _, a in parsed.tags if "href" in a]
    links += [a["xlink:href"] for _, a in parsed.tags if "xlink:href" in a]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"@import|url\((?!#)", page)


def test_every_link_within_the_page_leads_to_one_place(page):
    parsed = Page(page)
    ids = Counter(attrs["id"] for _, attrs in parsed.tags if "id" in attrs)
    assert max(ids.values()) == 1
    targets = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
    assert set(targets) <= set(ids)


def test_every_figure_has_a_caption_that_is_read_out(page):
    parsed = Page(page)
    drawings = parsed.all("svg")
    assert len(drawings) >= 8
    assert len(drawings) == len(parsed.all("figcaption"))
    assert all(len(drawing["aria-label"]) > 40 for drawing in drawings)


def test_every_question_has_a_section_with_a_sentence(page):
    parsed = Page(page)
    sections = [attrs["id"].removeprefix("made-") for attrs in parsed.all("section")]
    assert sections == [
        "verdict",
        "accuracy",
        "differences",
        "speed",
        "work",
        "firing",
        "trade-off",
        "entropies",
        "correctness",
        "refused",
        "flips",
        "settings",
        "columns",
    ]
    for section in sections[:-1]:
        heading = '<h2 class="section">.*?</h2>'
        assert re.search(rf'id="made-{section}".*?\n{heading}\n<p class="answer">', page)


def test_harm_is_called_harm(page):
    verdict = answers(page, "made", "verdict")
    assert re.search(r"easd hurts on sums \(40 pairs\): \d+\.\d+ points below target", verdict)
    assert "with exactly the baseline's texts" in verdict


@pytest.mark.parametrize(
    ("easd", "says"),
    [
        ([RIGHT] * 60, "easd helps on sums"),
        ([RIGHT] * 30 + [WRONG] * 30, "easd does nothing on sums"),
        (
            [RIGHT] * 29 + [WRONG] * 31,
            r"Whether easd helps or hurts on sums \(60 pairs\) cannot be told.*"
            r"this run detects differences of [\d.]+ points or more with 80 % power",
        ),
    ],
)
def test_the_verdict_claims_what_the_numbers_bear(easd, says, tmp_path):
    made = graded({"target": [RIGHT] * 30 + [WRONG] * 30, "easd": easd})
    write_report([made.run()], tmp_path)
    assert re.search(says, answers(read(tmp_path), "made", "verdict"))


def test_equivalence_names_the_margin(tmp_path):
    flips = [index % 500 == 0 for index in range(4000)]
    made = graded({"target": [RIGHT] * 4000, "easd": [not flip for flip in flips]})
    write_report([made.run()], tmp_path, margin=0.02)
    assert re.search(r"(hurts|makes no difference beyond ±2 points)", read(tmp_path))


def test_shared_noise_is_said_beside_acceptance(page, tmp_path):
    assert "Draft and target shared their noise" in answers(page, "made", "speed")
    write_report([with_coupling_of_rules(study()).run()], tmp_path)
    assert "shared their noise" not in answers(read(tmp_path), "made", "speed")


def with_coupling_of_rules(made):
    made.coupling = None
    return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_texts_in_half_precision_may_part_without_a_penalty(dtype, tmp_path):
    run = study().run()
    run.run["models"]["dtype"] = dtype
    write_report([run], tmp_path)
    said = answers(read(tmp_path), "made", "flips")
    assert "equal up to the first token that a penalty changed" in said
    assert ("rounded otherwise" in said) == (dtype == "bfloat16")


def test_a_gate_that_stays_shut_is_a_warning(tmp_path):
    made = graded({"target": [RIGHT] * 10, "easd": [RIGHT] * 10})
    write_report([made.run()], tmp_path)
    assert "which has almost no effect" in answers(read(tmp_path), "made", "firing")


def test_a_text_without_an_answer_is_shown_beside_one_with(tmp_path):
    made = graded({"target": [RIGHT, WRONG], "easd": [WRONG, RIGHT]})
    lost = next(s for s in made.samples if s["system"] == "easd" and not s["correct"])
    lost["answer"] = None
    write_report([made.run()], tmp_path)
    assert "easd answers none:" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "nan" not in " ".join(Page(read(tmp_path)).text).split()


def test_texts_of_models_are_text(tmp_path):
    evil = '<script>alert(1)</script>"onload="x\u202egnp.exe\x1b[31m'
    made = study()
    flipped = next(s for s in made.samples if s["system"] == "easd" and not s["correct"])
    flipped |= {"answer": evil, "text": evil, "token_ids": [77, 78]}
    made.token("easd", "sums", 3, 0, "penalised", token=80, text=evil)
    made.token("easd", "sums", 3, 0, "replacement", token=81, text=evil)
    run = made.run()
    items = run.items.to_pandas()
    items["prompt"] = evil + "| `` ```"
    run = replace(run, items=run.items.from_pandas(items, run.items.schema))
    write_report([run], tmp_path)
    text = read(tmp_path)
    parsed = Page(text)
    assert not parsed.open
    assert not parsed.all("script")
    assert not any("onload" in attrs for _, attrs in parsed.tags)
    for unseen in ("\u202e", "\x1b"):
        assert unseen not in text
    shown = " ".join(parsed.text)
    assert "<script>alert(1)</script>" in shown
    assert "<U+202E>" in shown
    assert "<U+001B>" in shown
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "\u202e" not in markdown
    outside = re.sub(r"^(`{3,}).*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"(?<!\\)<script", outside)


def test_names_of_systems_are_text(tmp_path):
    name = "easd <b>|$x_1$ \u202e"
    made = traced(graded({"target": [RIGHT] * 9, name: [WRONG] * 9}), system=name)
    write_report([made.run()], tmp_path)
    text = read(tmp_path)
    assert not Page(text).all("b")
    assert "\u202e" not in text


def test_the_same_run_gives_the_same_files(tmp_path):
    for out in ("one", "two"):
        write_report([study().run()], tmp_path / out)
    files = sorted(path for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) > 30
    for path in files:
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == other.read_bytes(), path.name


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    write_report([study().run()], tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_tables_are_written_twice_with_the_same_content(tmp_path):
    write_report([study().run()], tmp_path)
    names = {path.stem for path in (tmp_path / "tables").glob("*.csv")}
    assert {"accuracy", "differences", "speed", "work", "firing", "flips"} <= names
    assert names == {path.stem for path in (tmp_path / "tables").glob("*.parquet")}
    for name in ("accuracy", "differences"):
        csv = pd.read_csv(tmp_path / "tables" / f"{name}.csv")
        parquet = pd.read_parquet(tmp_path / "tables" / f"{name}.parquet")
        assert list(csv) == list(parquet)
        assert csv["system"].tolist() == parquet["system"].tolist()
        numbers = csv.select_dtypes("number")
        pd.testing.assert_frame_equal(numbers, parquet[list(numbers)], check_dtype=False)


def test_markdown_has_every_section_and_its_figures(tmp_path):
    write_report([study().run()], tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "### Verdict" in markdown
    assert "### Settings" in markdown
    files = re.findall(r"\]\((figures/[^)]+)\)", markdown)
    assert len(files) >= 8
    assert all((tmp_path / name).read_text().startswith("<svg") for name in files)
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, table


def test_an_unfinished_run_says_so(tmp_path):
    made = graded({"target": [RIGHT] * 9, "easd": [WRONG] * 7}, tasks={"sums": 20})
    made.status = "interrupted"
    write_report([made.run()], tmp_path)
    verdict = answers(read(tmp_path), "made", "verdict")
    assert "not complete (interrupted): 24 of 40 samples are missing" in verdict
    assert "(7 pairs)" in verdict


@pytest.mark.parametrize("rows", ["none", "one system", "one problem", "no baseline yet"])
def test_a_run_that_says_little_still_reports(rows, tmp_path):
    grades = {
        "none": {"target": [], "easd": []},
        "one system": {"target": [RIGHT] * 3},
        "one problem": {"target": [RIGHT], "easd": [WRONG]},
        "no baseline yet": {"easd": [RIGHT] * 3, "speculative": [RIGHT] * 3},
    }[rows]
    made = graded(grades, tasks={"sums": 3})
    if rows == "no baseline yet":
        made.systems = {"target": rule_of("target"), **made.systems}
    if rows == "none":
        made.units = []
    write_report([made.run()], tmp_path)
    assert not Page(read(tmp_path)).open


def test_several_runs_stand_side_by_side(tmp_path):
    other = graded({"target": [RIGHT] * 9, "easd": [WRONG] * 9})
    write_report([study().run("a/run"), other.run("b/run")], tmp_path)
    text = read(tmp_path)
    assert "9 pairs" in answers(text, "run-2", "verdict")
    assert "40 pairs" in answers(text, "run", "verdict")
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    table = pd.read_csv(tmp_path / "tables" / "accuracy.csv")
    assert set(table["run"]) == {"run", "run-2"}


def test_thresholds_are_mapped_where_systems_form_a_grid(tmp_path):
    rules = {f"easd {t}": {**EASD, "tau_h": t} for t in (0.5, 1.0, 1.5)}
    made = Evaluation(systems={"target": {"name": "target"}, **rules}, tasks={"sums": 8})
    for number, system in enumerate(made.systems):
        for index in range(8):
            made.sample(system, "sums", index, correct=index >= number)
        made.unit(system, "sums")
    write_report([made.run()], tmp_path)
    said = answers(read(tmp_path), "made", "thresholds")
    assert "accuracy goes from 62.5 % at tau_h 1.5, tau_o 0.8 to 87.5 % at tau_h 0.5" in said


def test_bad_requests_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no run to report on"):
        write_report([], tmp_path)
    with pytest.raises(ConfigError, match=r"margin = 2 is not a fraction"):
        write_report([study().run()], tmp_path, margin=2)
    with pytest.raises(ConfigError, match="baseline 'x' is not a system"):
        write_report([study().run()], tmp_path, baseline="x")
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(TraceError, match="cannot write a report to"):
        write_report([study().run()], taken)


def test_every_printed_number_has_a_definition():
    from easd.report import entropies, gate, speed, verdict
    from easd.report.metrics import COLUMNS

    modules = (entropies, gate, speed, verdict)
    groups = [v for m in modules for k, v in vars(m).items() if k.startswith("_") and k.isupper()]
    names = {
        name
        for group in groups
        if isinstance(group, str) and re.fullmatch("[a-z_0-9 ]+", group)
        for name in group.split()
    }
    assert {"accuracy", "p_holm", "gate_rate", "predicted"} <= names
    assert names <= set(COLUMNS)


def test_the_template_is_packaged():
    import easd.report

    template = Path(easd.report.__file__).parent / "templates" / "report.html.j2"
    assert template.is_file()
