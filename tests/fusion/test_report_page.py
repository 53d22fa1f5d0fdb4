"""The page of `mer report` as a reader without eyes, a paper and a browser meet it."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion import evaluate as evaluation
from mer.fusion import experiment
from mer.fusion.evaluate import evaluate

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings

LABELS = ("<b>calm & co</b>", "fünf_50 %", "ساد")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


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
def made(tmp_path_factory):
    """(the page, its folder of tables, its folder of figures, what was said) of two finished runs
    and an unfinished one, and a name that HTML, LaTeX and a narrow page must bear.
    """
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "RESAMPLES", 50)
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
        yield folder / "page.html", folder / "tables", folder / "figures", done.stderr


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


OVERFLOW = """<script>
window.addEventListener("load", () => {
  const wide = document.documentElement.scrollWidth - window.innerWidth;
  const told = `<p id="measured">${wide} ${window.innerWidth}</p>`;
  document.body.insertAdjacentHTML("beforeend", told);
});
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_in_a_browser_nothing_overflows_and_the_console_is_silent(made, tmp_path, width, dark):
    assert CHROMIUM is not None
    copy = tmp_path / "page.html"
    copy.write_text(made[0].read_text().replace("</body>", OVERFLOW))
    told = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900", *(["--force-dark-mode"] if dark else []),
            "--dump-dom", copy.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    measured = re.search(r'id="measured">(-?\d+) (\d+)<', told.stdout)
    assert measured is not None, told.stderr[-2000:]
    assert int(measured[1]) <= 0
    assert "CONSOLE" not in told.stderr
