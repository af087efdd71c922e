"""The page of charts, in a real browser: complete, and without a network."""

import re
import shutil
import subprocess
from collections import Counter, defaultdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stages.support.errors import InputError
from tests.conftest import Project, copy_of
from tools.page import PAGE
from tools.page import main as prepare_page

pytestmark = pytest.mark.slow
BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)
VARIANTS = ["sgd", "adam"]
CURVES = {"Test_accuracy", "Train_accuracy", "Test_loss", "metrics_curves_csv"}
OF_VARIANT = {f"metrics_{kind}_{name}_csv" for kind in ("curves", "confusion") for name in VARIANTS}


class Page(HTMLParser):
    """What the browser made of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: dict[str, Counter[str]] = defaultdict(Counter)  # by chart, of each kind
        self.texts: dict[str, list[str]] = defaultdict(list)  # of the legends, by chart
        self.order: list[str] = []  # of the charts and headings
        self.images: list[str] = []
        self.about = ""
        self._open: list[str] = []  # classes of the elements around
        self._chart = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count a mark, or note a chart or an image."""
        given = {key: value or "" for key, value in attrs}
        if tag == "div" and "id" in given:
            self._chart = given["id"]
            self.order.append(self._chart)
        if tag == "img":
            self.images.append(given["src"])
        around = " ".join(self._open)
        if tag == "path" and "role-mark" in around and len(given.get("d", "")) > len("M0,0"):
            kind = re.findall(r"mark-(\w+) role-mark", around)[-1]
            self.marks[self._chart][kind] += 1
        if tag not in ("meta", "br", "img", "link", "input"):
            self._open.append(given.get("class") or given.get("id") or tag)

    def handle_endtag(self, tag: str) -> None:
        """Leave the element."""
        if self._open:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        """Note a heading or a legend's name."""
        if "role-legend-label" in " ".join(self._open):
            self.texts[self._chart].append(data)
        elif self._open and self._open[-1] == "about":
            self.about += data
        elif self._open and self._open[-1] == "h2":
            self.order.append(data)


def browse(page: Path) -> Page:
    """Open a page, which must give no error, and return what came of it."""
    if BROWSER is None:
        pytest.skip("Chromium is not installed")
    done = subprocess.run(
        [
            *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent}/profile"),
            *("--virtual-time-budget=60000", "--enable-logging=stderr", "--dump-dom"),
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    # The page's own policy makes an error of whatever it would fetch.
    assert "CONSOLE" not in done.stderr, done.stderr
    found = Page()
    found.feed(done.stdout)
    return found


@pytest.fixture(scope="module")
def shown(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished project whose page is prepared and shown; look at it, do not change it."""
    project = copy_of(finished, tmp_path_factory.mktemp("page"))
    project.run("python", "-m", "tools.page")
    project.run("dvc", "plots", "show")
    return project


@pytest.fixture
def prepared(shown: Project, tmp_path: Path) -> Project:
    """A copy of it, to change."""
    return copy_of(shown, tmp_path)


def test_the_page_shows_every_chart_and_tells_the_story_in_order(shown: Project) -> None:
    page = browse(shown.folder / "dvc_plots/index.html")
    for chart in CURVES:
        assert page.marks[chart] == {"line": 2, "symbol": 4}  # variants; and epochs
        assert page.texts[chart] == VARIANTS
    for variant in VARIANTS:
        assert page.marks[f"metrics_curves_{variant}_csv"] == {"line": 2, "symbol": 4}
        assert page.texts[f"metrics_curves_{variant}_csv"] == ["train_accuracy", "test_accuracy"]
        assert page.marks[f"metrics_confusion_{variant}_csv"]["rect"] == 100
    assert {*page.marks} == CURVES | OF_VARIANT
    # The other figures repeat the charts.
    assert [re.sub(r".*_figures_", "", source) for source in page.images] == [
        *("modes.png", "gradients.png", "digits.png")
    ]
    for source in page.images:
        assert (shown.folder / "dvc_plots" / source).is_file()
    told = ["The variants beside each other", "Test_accuracy"]
    told += ["Variant by variant", "metrics_curves_sgd_csv"]
    told += ["Training mode beside evaluation mode", "metrics_figures_modes_png"]
    told += ["Gradients, layer by layer", "metrics_figures_gradients_png"]
    told += ["Which digit is taken for which", "metrics_confusion_sgd_csv"]
    told += ["The images", "metrics_figures_digits_png"]
    assert [one for one in page.order if one in told] == told
    assert page.about.startswith("In a chart of lines, a point is an epoch.")


def test_a_chart_that_a_user_adds_is_shown(prepared: Project) -> None:
    pipeline = prepared.folder / "dvc.yaml"
    chart = "- My chart: {template: variants, x: epoch, y: {metrics/curves.csv: seen_loss}}\n"
    pipeline.write_text(pipeline.read_text("utf-8") + chart, encoding="utf-8")
    prepared.run("dvc", "plots", "show")
    page = browse(prepared.folder / "dvc_plots/index.html")
    assert page.marks["My_chart"] == {"line": 2, "symbol": 4}
    assert page.order[page.order.index("More charts") + 1] == "My_chart"


def test_of_two_variants_only_what_differs_is_shown(prepared: Project) -> None:
    prepared.run("python", "-m", "tools.variants")
    prepared.run("dvc", "plots", "diff", *VARIANTS)
    page = browse(prepared.folder / "dvc_plots/index.html")
    assert dict(page.marks) == {"metrics_selected_csv": {"line": 2, "symbol": 4}}
    assert page.texts["metrics_selected_csv"] == VARIANTS
    assert page.images == []
    assert page.about.endswith("All other charts are the same in these revisions, and not shown.")


def test_of_two_commits_the_charts_are_shown_with_both(prepared: Project) -> None:
    for path in ("metrics/curves.csv", "metrics/confusion/sgd.csv"):
        table = prepared.folder / path
        table.write_text(re.sub(r"\d$", "0", table.read_text("utf-8"), flags=re.MULTILINE), "utf-8")
    curves = prepared.folder / "metrics/curves.csv"
    curves.write_text(re.sub(r"0\.\d+", "0.5", curves.read_text("utf-8")), encoding="utf-8")
    prepared.run("dvc", "plots", "diff", "HEAD")
    page = browse(prepared.folder / "dvc_plots/index.html")
    for chart in CURVES:
        assert page.marks[chart] == {"line": 4, "symbol": 8}  # of both revisions
        assert page.texts[chart][:2] == VARIANTS
    assert page.marks["metrics_confusion_sgd_csv"]["rect"] == 200
    assert "metrics_confusion_adam_csv" not in page.marks
    assert len(page.images) == 2 * 3


def test_on_a_phone_nothing_is_wider_than_the_screen(prepared: Project) -> None:
    measure = """<script>setTimeout(() => {
        // A figure may be wider than its frame, in which it is pushed aside.
        const pictures = [...document.querySelectorAll("svg, .charts > div")];
        const edges = pictures.map(picture => picture.getBoundingClientRect().right);
        const told = document.createElement("h2");
        told.textContent = `${edges.length} to ${Math.max(...edges)}`;
        document.body.append(told);
    }, 5000)</script></body>"""
    page = prepared.folder / "dvc_plots/index.html"
    # The browser's own window does not get as narrow.
    text = page.read_text(encoding="utf-8").replace("<html ", '<html style="width: 390px" ', 1)
    page.write_text(measure.join(text.rsplit("</body>", 1)), encoding="utf-8")
    pictures, right = browse(page).order[-1].split(" to ")
    assert int(pictures) >= len(CURVES | OF_VARIANT)
    assert 300 < float(right) <= 390


def test_several_seeds_have_a_mean_and_a_band(prepared: Project) -> None:
    curves = prepared.folder / "metrics/curves.csv"
    header, *rows = curves.read_text(encoding="utf-8").splitlines()
    others = [re.sub(r"^(\w+),0,", r"\1,1,", row) for row in rows]
    curves.write_text("\n".join([header, *rows, *others, ""]), encoding="utf-8")
    prepared.run("dvc", "plots", "show")
    page = browse(prepared.folder / "dvc_plots/index.html")
    for chart in CURVES:
        assert page.marks[chart] == {"area": 2, "line": 2, "symbol": 8}
    assert "a band its standard deviation" in page.about


def test_what_the_page_would_fetch_is_an_error(shown: Project, tmp_path: Path) -> None:
    template = (shown.folder / ".dvc/plots/page.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", template)
    fetching = '<script>fetch("https://example.org")</script>'
    (tmp_path / "page.html").write_text(template.replace("{plot_divs}", fetching), encoding="utf-8")
    with pytest.raises(AssertionError, match="CONSOLE"):
        browse(tmp_path / "page.html")


def test_a_page_that_dvc_was_not_told_of_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dvc").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (tmp_path / "dvc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"`dvc config --local .* failed"):
        prepare_page()
    assert not PAGE.exists()


def test_an_unprepared_page_is_dvcs_own(project: Project) -> None:
    project.run("dvc", "plots", "show")
    page = (project.folder / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert "cdn.jsdelivr.net" in page
