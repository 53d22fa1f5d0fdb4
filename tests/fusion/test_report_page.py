"""The page of `mer report` as a reader without eyes, a paper and a browser meet it."""

from __future__ import annotations

import csv
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.training import experiment

from tests.fusion.browser import CHROMIUM, browser
from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings

LABELS = ("<b>calm & co</b>", "fünf_50 %", "ساد")
WIDTHS = (400, 1280)
CONTRAST = 4.5  # WCAG 2, level AA, text of the usual size


class Page(HTMLParser):
    """Ids, targets of links, words of tables, and pictures with what they say of themselves."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.names: list[str] = []  # ids that something is labelled or described by
        self.pictures: list[dict[str, str | None]] = []
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids.update([found["id"]] if "id" in found else [])
        self.links += [found["href"]] if tag == "a" else []
        for key in ("aria-labelledby", "aria-describedby"):
            self.names += (found.get(key) or "").split()
        if tag in ("svg", "img"):
            self.pictures.append(found)

    def handle_data(self, data):
        self.said.append(data.strip())


@pytest.fixture(scope="module")
def made(tmp_path_factory, few_resamples):
    """(the page, its folder of tables, its folder of figures, what was said) of two finished runs
    and an unfinished one, and a name that HTML, LaTeX and a narrow page must bear.
    """
    folder = tmp_path_factory.mktemp("page")
    store = make_store(folder, n=120, labels=LABELS)
    for name, lr in ((f"<i>50%_{'w' * 60}", "3e-3"), ("poor", "1e-9")):
        wanted = settings("train.epochs=2", f"optim.lr={lr}")
        run = experiment.train(store, wanted, folder / name, seeds=2, note=quiet)
        evaluate(run, note=quiet)
    shutil.copytree(folder / "poor", folder / "cut")
    shutil.rmtree(folder / "cut" / "seed-1")
    (folder / "empty").mkdir()
    places = [folder / f"<i>50%_{'w' * 60}", folder / "poor", folder / "cut", folder / "empty"]
    asked = ["report", *places, "--out", folder / "page.html"]
    asked += ["--tables", folder / "tables", "--figures", folder / "figures"]
    done = CliRunner().invoke(main, [str(one) for one in asked])
    assert done.exit_code == 0, done.stderr
    return folder / "page.html", folder / "tables", folder / "figures", done.stderr


def test_ids_are_unique_and_links_lead_somewhere(made):
    page = Page(made[0].read_text())
    assert page.ids and max(page.ids.values()) == 1
    assert page.links and all(link[0] == "#" and link[1:] in page.ids for link in page.links)
    assert all(name in page.ids for name in page.names)


def test_every_picture_says_what_it_shows(made):
    page = Page(made[0].read_text())
    assert len(page.pictures) > 4
    for one in page.pictures:
        assert one.get("role") == "img" and (one.get("aria-labelledby") or one.get("aria-label"))


def test_runs_that_are_left_out_are_listed_and_counted(made):
    text, said = made[0].read_text(), made[3]
    assert "left out" in said and "cut" in said and "empty" in said
    assert 'id="left-out"' in text and "cut" in Page(text).said and "empty" in Page(text).said


def test_names_are_text(made):
    text = made[0].read_text()
    assert "<i>50%" not in text and "<b>calm" not in text and "&lt;i&gt;50%_" in text


def test_every_table_is_csv_and_latex_with_the_numbers_of_the_page(made):
    said = set(Page(made[0].read_text()).said)
    tables = sorted(made[1].glob("*.csv"))
    assert len(tables) > 4
    for path in tables:
        with open(path, newline="") as file:
            rows = list(csv.reader(file))
        assert len({len(row) for row in rows}) == 1
        latex = path.with_suffix(".tex").read_text()
        numbers = {cell for row in rows[1:] for cell in row if re.fullmatch(r"\d+\.\d", cell)}
        assert numbers <= said, path.name
        assert all(number in latex for number in numbers), path.name
        body = latex.partition("\n")[2]  # behind the comment
        assert not re.search(r"(?<!\\)[%_#]", body), path.name
        lines = [line for line in body.splitlines() if " & " in line]
        assert {line.count(" & ") + 1 for line in lines} == {len(rows[0])}, path.name
    everything = "".join(path.read_text() for path in made[1].glob("*.tex"))
    assert r"50\%\_www" in everything


def test_pictures_for_papers(made):
    import matplotlib.image

    names = {path.stem for path in made[2].iterdir()}
    assert names
    for name in names:
        assert (made[2] / f"{name}.svg").read_text().lstrip().startswith("<?xml")
        assert (made[2] / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert matplotlib.image.imread(made[2] / f"{name}.png").shape[1] > 600


OPENED = "document.querySelectorAll('details').forEach(one => { one.open = true; })"

# Every text of the pictures, with the ratio of its colour to what is behind it: paper, and on it
# the rectangles that the middle of the text lies in. axe cannot tell within pictures.
TEXTS_OF_PICTURES = """(() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const linear = [r, g, b].map(v => v / 255).map(
      v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const paper = numbers(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll("svg text")].map(text => {
    const box = text.getBoundingClientRect();
    const x = (box.left + box.right) / 2, y = (box.top + box.bottom) / 2;
    let behind = paper;
    for (const shape of text.ownerSVGElement.querySelectorAll("rect")) {
      const at = shape.getBoundingClientRect(), look = getComputedStyle(shape);
      if (x < at.left || x > at.right || y < at.top || y > at.bottom) continue;
      const share = Number(look.fillOpacity);
      behind = numbers(look.fill).map((v, i) => share * v + (1 - share) * behind[i]);
    }
    const both = [light(numbers(getComputedStyle(text).fill)), light(behind)].sort((a, b) => a - b);
    return [text.textContent, (both[1] + 0.05) / (both[0] + 0.05)];
  });
})()"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


def looks(test):
    """Run a test of a page at every width, light and dark."""
    test = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])(test)
    return pytest.mark.slow(pytest.mark.parametrize("width", WIDTHS)(test))


@looks
def test_in_a_browser_nothing_overflows_and_the_console_is_silent(made, chromium, width, dark):
    chromium.show(made[0], width, dark=dark)
    assert chromium.ask("matchMedia('(prefers-color-scheme: dark)').matches") == dark
    for opened in (False, True):
        if opened:
            chromium.ask(OPENED)
        assert chromium.ask("document.documentElement.scrollWidth") <= width
    assert chromium.complaints == []


@looks
def test_axe_finds_nothing_that_keeps_anybody_out(made, chromium, width, dark):
    """All rules of axe-core: contrast, names, ids, landmarks, headings, tables, lists."""
    axe = pytest.importorskip("axe_core_python.base", reason="pip install axe-core-python")
    chromium.show(made[0], width, dark=dark)
    chromium.ask(OPENED)
    chromium.ask(f"{axe.AXE_SCRIPT}; 0")
    found = chromium.ask("axe.run(document, {resultTypes: ['violations']})")
    said = []
    for rule in found["violations"]:
        said += [(rule["id"], one["target"], one["failureSummary"]) for one in rule["nodes"]]
    assert not said
    held = {rule["id"] for rule in found["passes"]}
    wanted = {"color-contrast", "duplicate-id-aria", "svg-img-alt", "document-title", "list"}
    wanted |= {"th-has-data-cells", "heading-order", "region"}
    wanted |= {"scrollable-region-focusable"} if width == min(WIDTHS) else set()
    assert wanted <= held, "axe has looked"


@looks
def test_words_in_pictures_stand_out(made, chromium, width, dark):
    chromium.show(made[0], width, dark=dark)
    for share in (0, 0.5, 1):  # of a confusion matrix, whatever these runs have
        shade = f"one.setAttribute('fill-opacity', {share})"
        chromium.ask(f"document.querySelectorAll('.cell').forEach(one => {{ {shade}; }})")
        found = chromium.ask(TEXTS_OF_PICTURES)
        assert len(found) > 100
        assert not [(share, text, ratio) for text, ratio in found if ratio < CONTRAST]
