import json
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from experiments.results import load_results
from reproduction.figures import draw_group
from reproduction.report import draw_mc, main, page, parts
from reproduction.tables import LOG, sections

WriteResult = Callable[..., Path]

MC = {"valid_ppl": 90.0, "test_ppl": 85.0, "test_ppl_mc_1": 120.0, "test_ppl_mc": 83.0, "mc_samples": 5}


class Parsed(HTMLParser):
    """A page's tags with their attributes, its text, the cells of each table by the tables' labels, and its data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: dict[str, list[str]] = {}
        self.figures: list[Any] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self._inside.append(tag)
        if (attributes.get("aria-label") or "").startswith("Table: "):
            self._cells: list[str] = []
            self.tables[str(attributes["aria-label"]).removeprefix("Table: ")] = self._cells
        if tag in ("th", "td") and attributes.get("scope") != "col":
            self._cells.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._inside[-1:] == ["script"]:
            if self.tags[-1][1].get("type") == "application/json":
                self.figures.append(json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")))
        elif self._inside[-1:] != ["style"]:
            self.text += data
            if self._inside[-1:] in (["th"], ["td"]) and "tbody" in self._inside:
                self._cells[-1] += data


@pytest.fixture
def parse(folder: Path) -> Callable[[], Parsed]:
    """The page of the results that are there."""
    return lambda: Parsed(page(load_results(folder)))


def test_every_cell_of_every_table_is_in_the_page(
    folder: Path, write_result: WriteResult, parse: Callable[[], Parsed]
) -> None:
    for seed in range(2):
        write_result("ptb", "small", "variational_tied", seed=seed, metrics=MC)
        write_result("sentiment", "figure2", "naive_lstm", seed=seed)
        write_result("demo", "sentiment", "naive", metrics={"test_rmse": 0.2, "constant_rmse": 0.25})
    results = load_results(folder)
    tables = parse().tables
    for experiment in ("ptb", "sentiment", "demo"):
        for section in sections(experiment, results):
            table = section.table.drop(columns=["hardware", "config"], errors="ignore")
            assert tables.pop(section.title) == table.to_numpy().ravel().tolist()
    assert tables == {}


def test_claims_stand_in_the_page_with_verdict_and_evidence(
    write_result: WriteResult, parse: Callable[[], Parsed]
) -> None:
    for row, end in (("standard_lstm", 0.19), ("naive_lstm", 0.18), ("variational_lstm", 0.15)):
        curve = [{"epoch": e, "train_rmse": 0.1, "test_rmse": end} for e in range(1, 61)]
        write_result("sentiment", "figure2", row, epochs=60, planned_epochs=60, curve=curve)
    cells = parse().tables["What the paper says, and what our curves say (Film reviews)"]
    at = cells.index("LSTM: the variational one ends lowest")
    assert cells[at + 1] == "holds"
    assert cells[at + 2] == "end: standard 0.1900, naive 0.1800, variational 0.1500 (60 epochs)"


def test_a_group_without_results_has_one_line_that_says_so_and_no_curves(
    folder: Path, write_result: WriteResult
) -> None:
    write_result("ptb", "small", "zaremba")
    results = load_results(folder)
    small, _, medium, *_ = parts("ptb", results)
    assert (small.has_results, len(small.plots)) == (True, 2)
    assert (medium.has_results, medium.plots) == (False, [])
    assert [part.has_results for part in parts("sentiment", results)] == [False] * 4
    text = page(results)
    assert text.count("<details><summary>Not run. ") == len(
        [part for experiment in ("ptb", "sentiment") for part in parts(experiment, results) if not part.has_results]
    )


def test_the_demo_is_there_only_if_it_was_run(write_result: WriteResult, parse: Callable[[], Parsed]) -> None:
    write_result("ptb", "small", "zaremba")
    assert "Demo" not in parse().text
    write_result("demo", "language_model", "naive")
    assert "Demo, language model" in parse().text


def test_origin_versions_and_configuration_of_each_run_are_in_the_page(
    write_result: WriteResult, parse: Callable[[], Parsed]
) -> None:
    write_result("ptb", "small", "zaremba", config={"model": {"hidden_size": 200}})
    text = parse().text
    assert "Zaremba et al., seed 0: commit 0123456, 2026-01-02, Some CPU (2 cores), 1 h 2 min" in text
    assert "versions:\n  torch: 2.13.0\n" in text
    assert "  model:\n    hidden_size: 200\n" in text


def test_notes_are_rendered(folder: Path, write_result: WriteResult) -> None:
    write_result("ptb", "small", "zaremba")
    (folder / "ptb/small/notes.md").write_text("See **this**:\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    text = page(load_results(folder))
    assert "<strong>this</strong>" in text
    assert "<td>2</td>" in text


def test_what_result_files_say_is_shown_and_never_executed(
    folder: Path, write_result: WriteResult, parse: Callable[[], Parsed]
) -> None:
    write_result("ptb", "small", "zaremba")
    harmless = [tag for tag, _ in parse().tags if tag in ("script", "img", "b")]
    bad = "<b onclick='x()'><img src=x>&<script>"
    write_result("ptb", "small", bad, config={"key": f"</pre>{bad}"})
    write_result("ptb", f"group {bad}", bad)
    (folder / "ptb/small/notes.md").write_text(f"{bad} ![x](https://example.org/x.png) [y](javascript:x())")
    parsed = parse()
    assert [tag for tag, _ in parsed.tags if tag in ("script", "img", "b")] == harmless + ["script"] * 2  # two plots
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert not any("javascript:" in (attributes.get("href") or "") for _, attributes in parsed.tags)
    assert parsed.text.count(bad) > 4
    assert {line["name"] for line in parsed.figures[0]["data"]} == {
        "Zaremba et al., seed 0",
        "&lt;b onclick=&#x27;x()&#x27;&gt;&lt;img src=x&gt;&amp;&lt;script&gt;, seed 0",  # Plotly takes it for HTML
    }


def test_the_page_loads_nothing(folder: Path, write_result: WriteResult, parse: Callable[[], Parsed]) -> None:
    write_result("ptb", "small", "zaremba")
    tags = parse().tags
    assert not any({"src", "srcset", "data", "poster"} & attributes.keys() for _, attributes in tags)
    assert {tag for tag, attributes in tags if "href" in attributes} == {"a"}
    assert "link" not in {tag for tag, _ in tags}
    before_plotly, *_ = page(load_results(folder)).split("plotly.js v")
    assert "url(" not in before_plotly
    assert "@import" not in before_plotly


def test_the_page_has_a_language_headings_in_order_and_contents_that_lead_somewhere(
    write_result: WriteResult, parse: Callable[[], Parsed]
) -> None:
    write_result("ptb", "small", "zaremba")
    tags = parse().tags
    assert ("html", {"lang": "en"}) in tags
    levels = [int(tag[1]) for tag, _ in tags if tag in ("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert all(level <= before + 1 for before, level in pairwise(levels))
    names = [attributes["id"] for _, attributes in tags if "id" in attributes]
    linked = [str(attributes["href"])[1:] for tag, attributes in tags if tag == "a" and attributes["href"][:1] == "#"]
    assert linked == names


def test_each_run_is_a_line_with_the_points_of_its_curve_in_the_colour_of_the_figures(
    folder: Path, write_result: WriteResult
) -> None:
    for seed in range(2):
        write_result("ptb", "small", "variational_tied", seed=seed)
    write_result("ptb", "small", "unheard_of", epochs=2)
    results = load_results(folder)
    training, validation = parts("ptb", results)[0].plots
    assert [plot.title for plot in (training, validation)] == ["Training (dropout on)", "Validation (dropout off)"]
    for plot, metric in ((training, "train_ppl"), (validation, "valid_ppl")):
        assert [(list(line.x), list(line.y)) for line in plot.figure.data] == [run.points(metric) for run in results]
    assert [line.name for line in validation.figure.data] == [
        "Variational (tied), seed 0",
        "Variational (tied), seed 1",
        "unheard_of (2 of 3 epochs), seed 0",
    ]
    drawn = {line.get_label(): line.get_color() for line in draw_group("ptb", "small", results).axes[1].get_lines()}
    assert [line.line.color for line in validation.figure.data] == [
        drawn["Variational (tied)"],
        drawn["Variational (tied)"],
        drawn["unheard_of (2 of 3 epochs)"],
    ]
    assert validation.figure.layout.yaxis.type == "log"


def test_film_reviews_show_train_and_test_error_with_mc_dotted_and_the_constant_predictor(
    folder: Path, write_result: WriteResult
) -> None:
    curve = [
        {"epoch": e, "train_rmse": 0.1, "test_rmse": 0.2} | ({"test_rmse_mc": 0.19} if e == 2 else {}) for e in (1, 2)
    ]
    write_result("sentiment", "figure2", "variational_lstm", epochs=2, curve=curve)
    training, test = parts("sentiment", load_results(folder))[0].plots
    assert [list(line.y) for line in training.figure.data] == [[0.1, 0.1]]
    assert [(list(line.x), line.line.dash) for line in test.figure.data] == [([1, 2], "solid"), ([2], "dot")]
    [constant] = test.figure.layout.shapes
    assert constant.y0 == constant.y1 == 0.1915
    assert test.keys == [("dotted", "MC, 10 networks"), ("solid", "constant predictor")]
    assert test.figure.layout.yaxis.type is None


def test_mc_has_a_panel_where_it_was_measured_for_several_numbers_of_samples(
    folder: Path, write_result: WriteResult
) -> None:
    write_result("ptb", "small", "variational_tied", metrics=MC)
    write_result("ptb", "medium", "variational_tied", metrics={**MC, "test_ppl_mc_1": None})
    results = load_results(folder)
    small, _, medium, *_ = parts("ptb", results)
    assert [len(small.plots), len(medium.plots)] == [3, 2]
    line, approximation = draw_mc(small.runs).figure.data
    assert (list(line.x), list(line.y)) == ([1, 5], [120.0, 83.0])
    assert list(approximation.y) == [85.0, 85.0]


def test_the_authors_log_stands_beside_the_run_of_their_setting(folder: Path, write_result: WriteResult) -> None:
    curve = [{"epoch": 1, "train_ppl": 300.0, "valid_ppl": 200.0, "valid_ppl_lua": 199.0}]
    write_result("ptb", "gal1250", "variational_untied", epochs=1, curve=curve)
    [part] = [part for part in parts("ptb", load_results(folder)) if part.section.name == "ptb_gal1250"]
    _, log = part.plots[1].figure.data
    assert (len(log.x), log.y[-1]) == (55, pytest.approx(79.1, abs=0.05))


def test_the_authors_log_is_drawn_at_its_epochs_with_dropout_in_training(
    folder: Path, write_result: WriteResult
) -> None:
    write_result("ptb", "gal1250", "variational_untied")
    [part] = [part for part in parts("ptb", load_results(folder)) if part.section.name == "ptb_gal1250"]
    log = pandas.read_csv(LOG)
    columns = ("train_ppl_with_dropout_running", "valid_ppl_as_printed")
    for plot, column in zip(part.plots, columns, strict=True):
        drawn = plot.figure.data[-1]
        assert (list(drawn.x), list(drawn.y)) == (list(range(1, 56)), log[column].tolist())


def test_each_style_and_each_run_is_told_by_what_it_shows(folder: Path, write_result: WriteResult) -> None:
    for seed in (0, 3):
        write_result("demo", "sentiment", "naive", seed=seed, metrics={"test_rmse": 0.2, "constant_rmse": 0.25})
    [_, part] = parts("demo", load_results(folder))
    [plot] = part.plots
    train, held_out = [0.2, 0.1, 0.2 / 3], [0.2, 0.15, 0.1 + 0.1 / 3]
    shown = [(line.meta["seed"], line.line.dash) for line in plot.figure.data]
    assert shown == [(0, "solid"), (3, "solid"), (0, "dash"), (3, "dash")]
    for line, values in zip(plot.figure.data, 2 * [held_out] + 2 * [train], strict=True):
        assert list(line.y) == pytest.approx(values)
    assert all("%{y:.4f}" in line.hovertemplate for line in plot.figure.data)
    assert plot.keys[:2] == [("solid", "held-out data"), ("dashed", "training data")]


def test_baselines_of_film_reviews_are_told_apart_by_their_dashes(folder: Path, write_result: WriteResult) -> None:
    write_result("sentiment", "figure2", "naive_lstm")
    errors = {"train_rmse": 0.18, "test_rmse": 0.19, "test_rmse_review": 0.17}
    ridge = {name: error - 0.02 for name, error in errors.items()}
    (folder / "sentiment/baselines.json").write_text(
        json.dumps({"splits": {"0": {"constant": errors, "ridge": ridge}}})
    )
    _, test = parts("sentiment", load_results(folder))[0].plots
    assert [(shape.y0, shape.line.dash) for shape in test.figure.layout.shapes] == [(0.19, "solid"), (0.17, "dash")]
    assert test.keys == [("solid", "constant predictor"), ("dashed", "ridge regression on words")]


def test_the_page_says_how_many_runs_it_is_of_and_the_date_of_the_latest(
    write_result: WriteResult, parse: Callable[[], Parsed]
) -> None:
    for seed, date in enumerate(("2026-01-02", "2026-03-04", "2025-12-31")):
        path = write_result("ptb", "small", "zaremba", seed=seed)
        path.write_text(path.read_text().replace("2026-01-02T", f"{date}T"))
    assert "From 3 result files, the latest of 2026-03-04." in parse().text


def test_a_value_that_is_no_number_leaves_a_gap(write_result: WriteResult, parse: Callable[[], Parsed]) -> None:
    curve = [{"epoch": e, "train_ppl": 1.0, "valid_ppl": ppl} for e, ppl in ((1, 9.0), (2, float("nan")))]
    write_result("ptb", "small", "zaremba", epochs=2, curve=curve)
    assert parse().figures[1]["data"][0]["y"] == [9.0, None]


def test_the_page_is_written_beside_the_results_or_where_it_is_asked_for(
    folder: Path, tmp_path: Path, write_result: WriteResult, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result("ptb", "small", "zaremba")
    main(["--results", str(folder)])
    assert capsys.readouterr().out == f"wrote {folder / 'report.html'}\n"
    other = tmp_path / "new/page.html"
    main(["--results", str(folder), "--output", str(other)])
    assert other.read_bytes() == (folder / "report.html").read_bytes()


def test_without_results_the_report_says_what_to_do(folder: Path) -> None:
    with pytest.raises(SystemExit, match="no results to report; run `make demo` first"):
        main(["--results", str(folder)])
    with pytest.raises(SystemExit, match="no such folder"):
        main(["--results", str(folder / "absent")])


def test_a_page_that_cannot_be_written_leaves_nothing_behind(
    folder: Path, tmp_path: Path, write_result: WriteResult
) -> None:
    write_result("ptb", "small", "zaremba")
    (tmp_path / "taken").mkdir()
    with pytest.raises(SystemExit, match=r"taken cannot be written .* name another file with --output"):
        main(["--results", str(folder), "--output", str(tmp_path / "taken")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results", "taken"]


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        yield browser
        browser.close()


@pytest.fixture
def report(folder: Path, write_result: WriteResult) -> str:
    """The address of a page with two rows of two seeds, one of them with MC, and film reviews."""
    for seed in range(2):
        write_result("ptb", "small", "zaremba", seed=seed)
        write_result("ptb", "small", "variational_tied", seed=seed, metrics=MC)
    write_result("sentiment", "figure2", "naive_lstm")
    main(["--results", str(folder)])
    return (folder / "report.html").as_uri()


@pytest.fixture
def desktop(browser: Browser) -> Iterator[Page]:
    with browser.new_context(viewport={"width": 1400, "height": 900}) as context:
        yield context.new_page()


@pytest.fixture
def phone(browser: Browser) -> Iterator[Page]:
    with browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True) as context:
        yield context.new_page()


def group(page: Page, name: str) -> Locator:
    return page.locator("section").filter(has=page.locator(f"h3#{name}"))


def lines(group: Locator) -> list[int]:
    """The number of curves that each panel shows."""
    return [plot.locator(".scatterlayer .trace").count() for plot in group.locator(".plot").all()]


@pytest.mark.slow
def test_the_page_opens_from_disk_without_errors_and_without_the_network(desktop: Page, report: str) -> None:
    problems: list[str] = []
    requests: list[str] = []
    desktop.on("console", lambda message: problems.append(message.text))
    desktop.on("pageerror", lambda error: problems.append(str(error)))
    desktop.on("request", lambda request: requests.append(request.url))
    desktop.goto(report)
    for plot in desktop.locator(".plot").all():
        expect(plot.locator(".scatterlayer .trace").first).to_be_visible()
    assert problems == []
    assert requests == [report]
    assert desktop.title() == "Variational dropout in recurrent networks: results"


@pytest.mark.slow
def test_no_button_sends_curves_away(desktop: Page, report: str) -> None:
    desktop.goto(report)
    buttons = desktop.locator(".plot").first.locator(".modebar-btn")
    assert [button.get_attribute("data-title") for button in buttons.all()] == [
        *("Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes")
    ]


@pytest.mark.slow
def test_a_row_is_switched_off_and_on_in_all_panels_of_its_group(desktop: Page, report: str) -> None:
    desktop.goto(report)
    small, reviews = group(desktop, "ptb_small"), group(desktop, "sentiment_figure2")
    assert lines(small) == [4, 4, 4]  # of MC, two runs with the approximation beside each
    tied = small.get_by_label("Variational (tied)", exact=True)
    tied.uncheck()
    assert lines(small) == [2, 2, 0]
    assert lines(reviews) == [1, 1]
    tied.check()
    assert lines(small) == [4, 4, 4]


@pytest.mark.slow
def test_a_seed_is_switched_off_and_on_in_all_panels_of_its_group(desktop: Page, report: str) -> None:
    desktop.goto(report)
    small = group(desktop, "ptb_small")
    seed = small.get_by_label("1", exact=True)
    seed.uncheck()
    assert lines(small) == [2, 2, 2]
    small.get_by_label("Zaremba et al.", exact=True).uncheck()
    assert lines(small) == [1, 1, 2]
    seed.check()
    assert lines(small) == [2, 2, 4]


@pytest.mark.slow
def test_the_value_of_a_point_is_shown_under_the_mouse(desktop: Page, report: str) -> None:
    desktop.goto(report)
    small = group(desktop, "ptb_small")
    small.get_by_label("1", exact=True).uncheck()
    small.get_by_label("Variational (tied)", exact=True).uncheck()
    plot = small.locator(".plot").nth(1)
    plot.scroll_into_view_if_needed()
    x, y = plot.evaluate(
        """plot => {
            const { xaxis, yaxis } = plot._fullLayout, { left, top } = plot.getBoundingClientRect();
            return [left + xaxis._offset + xaxis.d2p(2), top + yaxis._offset + yaxis.d2p(150)];
        }"""
    )
    desktop.mouse.move(x - 30, y)
    desktop.mouse.move(x, y)
    expect(plot.locator(".hovertext")).to_have_text("Zaremba et al., seed 0epoch 2: 150.00")


@pytest.mark.slow
def test_a_phone_stacks_the_panels_and_scrolls_tables_but_not_the_page_sideways(phone: Page, report: str) -> None:
    phone.goto(report)
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    small = group(phone, "ptb_small")
    assert small.locator(".scroll").evaluate("box => box.scrollWidth > box.clientWidth")
    boxes = [plot.bounding_box() for plot in small.locator(".plot").all()]
    assert len({box["x"] for box in boxes if box}) == 1
    assert all(box and box["x"] + box["width"] <= 390 for box in boxes)


@pytest.mark.slow
def test_a_finger_on_a_curve_scrolls_the_page(phone: Page, report: str) -> None:
    phone.goto(report)
    plot = phone.locator(".plot").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box
    x, y, before = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, phone.evaluate("scrollY")
    touch = phone.context.new_cdp_session(phone)
    for kind, distance in (("touchStart", 0), *(("touchMove", 10 * i) for i in range(1, 16)), ("touchEnd", None)):
        points = [] if distance is None else [{"x": x, "y": y - distance}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    phone.wait_for_function(f"scrollY > {before} + 50")


@pytest.mark.slow
def test_a_desktop_has_the_panels_of_a_group_beside_each_other(desktop: Page, report: str) -> None:
    desktop.goto(report)
    boxes = [plot.bounding_box() for plot in group(desktop, "ptb_small").locator(".plot").all()]
    assert len({box["y"] for box in boxes if box}) == 1
    assert desktop.evaluate("document.documentElement.scrollWidth") == 1400


def test_experiments_of_ones_own_are_in_the_page_with_their_curves(
    write_result: WriteResult, parse: Callable[[], Parsed], folder: Path
) -> None:
    write_result("mine", "text", "my row")
    write_result("sweeps", "grid", "point")
    assert "mine, text" in parse().tables
    assert "sweeps, grid" not in parse().tables
    [part] = parts("mine", load_results(folder))
    assert len(part.plots) == 2
