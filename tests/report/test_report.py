"""The content of a report. `test_report_in_browser.py` tests its behaviour."""

import base64
import csv
import io
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hdc_keras.errors import RunError
from hdc_keras.evaluation.job import evaluate
from hdc_keras.evaluation.splits import load_splits
from hdc_keras.report.charts import nice_ticks, spread, thinned
from hdc_keras.report.class_tables import class_panels
from hdc_keras.report.cost import duration
from hdc_keras.report.embedding_map import fit_to_page, tsne
from hdc_keras.report.job import build_report
from hdc_keras.report.page import breakable
from hdc_keras.report.retrieval_gallery import choose_queries
from hdc_keras.report.shown_videos import every_nth, find_videos
from hdc_keras.report.thumbnails import FRAMES, ThumbnailSheet, encode_strip, middle_frames
from hdc_keras.results.comparison import compare_runs
from hdc_keras.results.store import JudgedVideo, read_results
from hdc_keras.runs.directory import RunDirectory
from tests.results.saved_runs import (
    ODD_LABEL,
    judgements,
    one_label_run,
    unjudged_run,
    write_result,
    write_run,
)


class Page(HTMLParser):
    """The elements of a page with their attributes, its text by section, and its mismatched tags."""

    VOID = frozenset({"meta", "link", "wbr"})

    def __init__(self, html):
        super().__init__()
        self.elements = []
        self.text = {}
        self.errors = []
        self._open = []
        self._section = ""
        self._gap = " "
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag == "section":
            self._section = attributes["id"]
        self._gap = "" if tag == "wbr" else " "
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.errors.append((tag, self.getpos()))

    def handle_data(self, data):
        self.text[self._section] = " ".join((self.text.get(self._section, "") + self._gap + data).split())
        self._gap = " "

    def with_class(self, name):
        return [attributes for _, attributes in self.elements if name in (attributes.get("class") or "").split()]


@pytest.fixture(scope="module")
def two_labels(two_label_report):
    html = two_label_report.read_text(encoding="utf-8")
    return two_label_report.parent, html, Page(html)


@pytest.fixture(scope="module")
def one_label(one_label_report):
    html = one_label_report.read_text(encoding="utf-8")
    return html, Page(html)


def test_the_page_refers_to_no_other_file(two_labels, one_label):
    for html in (two_labels[1], one_label[0]):
        assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", html)
        assert not re.findall(r"url\((?!data:)|@import", html)
        assert "default-src 'none'" in html


def test_the_page_is_well_formed_and_its_ids_are_unique(two_labels, one_label):
    for page in (two_labels[2], one_label[1]):
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert not page.errors and len(ids) == len(set(ids))
        linked = {a["href"][1:] for tag, a in page.elements if tag == "a"}
        labelled = {a["for"] for tag, a in page.elements if tag == "label"}
        assert linked | labelled <= set(ids)


def test_the_file_is_small(two_labels):
    _, html, page = two_labels
    strips = {name for name in re.findall(r"\.(t\d+)\{", html)}
    shown = {name for a in page.with_class("thumb") for name in a["class"].split() if re.fullmatch(r"t\d+", name)}

    # Test videos, neighbours, and three views of three videos: each thumbnail is embedded once and used.
    on_the_map = {point["data-picture"] for point in page.with_class("point")}
    assert len(html) < 600_000 and shown | on_the_map == strips and 36 + 9 < len(strips) <= 72 + 9


def test_every_picture_has_a_text(two_labels):
    _, _, page = two_labels
    pictures = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    headers = [attributes for tag, attributes in page.elements if tag == "th"]

    assert len(pictures) > 100 and all(picture["aria-label"] for picture in pictures)
    assert headers and all(header.get("scope") for header in headers)


def test_results_show_random_weights_chance_deviation_and_reductions(two_labels):
    run, _, page = two_labels
    values = json.loads((run / "results" / "finetune-vcop-moving-shapes.json").read_text())
    pretrained = values["metrics"]["motion"]["fine-tuned"]["top1"]
    random = values["random_weights"]["motion"]["fine-tuned"]["top1"]

    shown = page.text["results"]
    tile = f"{100 * pretrained:.1f} ± 3.0 differs from the publication random weights {100 * random:.1f}, chance 25.0"
    table = f"{100 * pretrained:.1f} ± 3.0 {100 * random:.1f} ± 2.0"
    assert tile in shown and table in shown
    assert "Differs from the publication." in shown and "epochs: 3 instead of 150" in shown
    assert "Fine-tuning as in VCOP" in shown and "a test" in shown


def test_the_best_known_protocols_come_first(two_labels):
    titles = re.findall(r"<h3>(.+?) <span>", two_labels[1].partition('id="classes"')[0])

    assert titles == ["Fine-tuning as in VCOP", "Linear probe", "Retrieval"]


def test_the_confusion_matrix_counts_predictions(two_labels):
    run, _, page = two_labels
    with (run / "results" / "linear-moving-shapes.videos.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["network"], row["column"]) == ("metrics", "appearance")]
    (result,) = [result for result in read_results(run) if result.protocol == "linear"]
    panel = class_panels([result])[0]

    counted = {
        (label, predicted): panel.matrix[i][j]
        for i, label in enumerate(panel.classes)
        for j, predicted in enumerate(panel.classes)
        if panel.matrix[i][j]
    }
    assert counted == Counter((row["label"], row["predicted"]) for row in rows) and len(rows) == 36
    # The counts are not symmetric, so exchanged rows and columns would be noticed.
    assert any(counted.get((predicted, label)) != count for (label, predicted), count in counted.items())
    for label, predicted, count in panel.confusions:
        assert count == sum((row["label"], row["predicted"]) == (label, predicted) for row in rows) > 0
    assert "Linear probe, appearance" in page.text["classes"]


def test_many_classes_become_a_picture_and_a_list(tmp_path):
    run = write_run(tmp_path / "run")
    videos = judgements({f"class{number:03}-0": True for number in range(100)})
    videos += [line | {"predicted": "class007"} for line in judgements({"class003-1": True, "class003-2": True})]
    write_result(run, "linear", videos)

    (panel,) = class_panels(read_results(run))

    assert not panel.matrix and panel.confusions == (("class003", "class007", 2),)
    cells = "".join(panel.shades.values())
    assert cells.count("M") == 101 and "M7 3h1v1h-1z" in cells
    assert {accuracy.label: accuracy.share for accuracy in panel.accuracies}["class003"] == pytest.approx(1 / 3)


def test_retrieved_videos_are_marked_by_a_sign_and_not_only_by_colour(two_labels):
    run, html, page = two_labels
    with (run / "results" / "retrieval-moving-shapes.videos.csv").open(newline="") as file:
        rows = {(row["column"], row["video_id"]): row for row in csv.DictReader(file) if row["network"] == "metrics"}
    galleries = html.partition('id="retrieval"')[2].partition('id="map"')[0]
    marked = r'aria-label="(\S+) of class (\w+), (right|wrong)"></span>\s*<span class="verdict.+?>(.)</span>'
    shown = re.findall(marked, galleries)

    assert len(shown) == 2 * 12 * 5
    assert all((verdict == "right") == (sign == "✓") for _, _, verdict, sign in shown)
    query = re.search(r'query (\S+) of class (\w+)"', galleries)
    first = rows["appearance", query[1]]
    assert [name for name, *_ in shown[:5]] == first["neighbours"].split("|")[:5]
    assert [verdict for _, _, verdict, _ in shown[:5]] == [
        "right" if name.startswith(query[2]) else "wrong" for name, *_ in shown[:5]
    ]
    assert page.text["retrieval"].startswith("Retrieval Test videos")


def test_the_map_holds_every_test_video_by_every_source_and_label(two_labels):
    _, html, page = two_labels
    data = json.loads(re.search(r'id="map-data">(.+?)</script>', html)[1])

    assert set(data["places"]) == {"features", "spatial embeddings", "temporal embeddings"}
    assert all(len(places) == 36 for places in data["places"].values())
    assert set(data["classOf"]) == {"appearance", "motion"}
    points = page.with_class("point")
    assert len(points) == 36 and [point["tabindex"] for point in points].count("0") == 1
    for point in points:
        appearance, motion = point["data-labels"].split(", ")
        assert point["data-name"].startswith(f"{appearance}-{motion}")


def test_curves_views_cost_and_config_are_shown(two_labels):
    _, _, page = two_labels

    assert len(page.with_class("chart")) == 7
    for expected in ("Loss by level and task", "Measured invariance", "Weight of each level", "Learning rate"):
        assert expected in page.text["training"]
    for expected in ("anchor", "spatial positive", "temporal positive"):
        assert expected in page.text["views"]
    assert "6 min 6 s" in page.text["cost"] and "10% of the time" in page.text["cost"]
    assert "in r3d_tiny" in page.text["cost"] and "cpu:0" in page.text["cost"]
    assert "backbone: r3d_tiny" in page.text["setup"]


def test_names_that_look_like_markup_are_escaped(one_label):
    html, page = one_label

    assert ODD_LABEL not in html
    for section in ("classes", "retrieval", "map"):
        assert ODD_LABEL in page.text[section], section
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 3


def test_the_command_reports_a_run_without_labels_and_results(tmp_path, hdc_keras_in_process):
    run = unjudged_run(tmp_path / "my run")
    before = {file.name for file in run.iterdir()}

    done = hdc_keras_in_process("report", "--run", run)

    assert done.code == 0 and "report.html, 0." in done.out, done.out
    assert {file.name for file in run.iterdir()} - before == {"report.html", "features"}
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    for section, protocol in (("results", "linear"), ("classes", "linear"), ("retrieval", "retrieval")):
        assert f"hdc-keras evaluate --run '{run}' --protocol {protocol}" in page.text[section]
    assert "have no labels" in page.text["map"] and len(page.with_class("point")) == 8


def test_the_command_only_writes_html(tmp_path, hdc_keras_in_process):
    done = hdc_keras_in_process("report", "--run", write_run(tmp_path / "run"), "--out", "report.pdf")

    assert done.code == 2 and "report.pdf" in done.out and ".html" in done.out


def test_a_run_whose_videos_are_gone_says_so(tmp_path):
    run = one_label_run(tmp_path)
    for file in (tmp_path / "videos").rglob("*"):
        if file.is_file():
            file.unlink()

    page = Page(build_report(RunDirectory(run)))

    for section in ("retrieval", "map", "views"):
        assert "cannot be read" in page.text[section]
    assert "Linear probe" in page.text["results"] and len(page.with_class("matrix")) > 0


def test_a_run_before_its_first_epoch_says_so(tmp_path, two_label_report):
    run = shutil.copytree(two_label_report.parent, tmp_path / "run")
    for name in ("metrics.csv", "environment.json"):
        (run / name).unlink()
    for folder in ("results", "checkpoints"):
        for file in (run / folder).iterdir():
            file.unlink()

    page = Page(build_report(RunDirectory(run)))

    assert "no epoch has finished" in page.text[""] and "hdc-keras pretrain --run" in page.text["training"]
    assert "holds no checkpoint" in page.text["map"] and "no environment.json" in page.text["setup"]


def test_results_and_cached_features_of_evaluate_are_compared_and_reported(tmp_path):
    run = one_label_run(tmp_path)
    directory = RunDirectory(run)
    for file in (run / "results").iterdir():
        file.unlink()
    experiment = directory.experiment()
    evaluate(directory, experiment, load_splits(experiment, "own")[0], ["knn", "retrieval"])
    cached = sorted((run / "features").iterdir())

    page = Page(build_report(directory))
    comparison = compare_runs([run, run])

    assert sorted((run / "features").iterdir()) == cached  # No video was encoded again.
    assert "A map needs at least 8 videos; there are 4" in page.text["map"]
    assert page.with_class("query") and page.with_class("matrix") and "k nearest neighbours" in page.text["results"]
    differences = [row.differences[0] for row in comparison.rows if row.source == "features"]
    assert not comparison.notes and {difference.videos for difference in differences} == {0, 4}


def test_a_run_that_is_still_trained_may_delete_the_checkpoint_meanwhile(tmp_path, monkeypatch):
    run = RunDirectory(one_label_run(tmp_path))
    checkpoint = run.checkpoints.files()[-1]
    text = f"{checkpoint.name}, {checkpoint.stat().st_size / 1e6:,.1f} MB"

    def find(*arguments):
        checkpoint.unlink()
        return find_videos(*arguments)

    monkeypatch.setattr("hdc_keras.report.job.find_videos", find)

    assert text in Page(build_report(run)).text["cost"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        build_report(RunDirectory(tmp_path))


def test_a_video_that_does_not_decode_has_a_reason_instead_of_a_thumbnail(class_folder):
    from hdc_keras.config import DataConfig
    from hdc_keras.data.records import read_records

    (class_folder / "across" / "0.mp4").write_bytes(b"no video")
    sheet = ThumbnailSheet()
    sheet.add_videos(read_records(class_folder), DataConfig(frames=8, decode_size=(32, 64)))

    assert list(sheet.missing) == ["across/0.mp4"] and len(sheet.classes) == 7
    picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^)]+)", sheet.css())[1])))
    assert picture.format == "WEBP" and picture.size == (FRAMES * 128, 64)


def test_a_strip_holds_its_frames_side_by_side():
    frames = np.broadcast_to((32 * np.arange(8))[:, None, None, None], (8, 64, 64, 3)).astype(np.uint8)

    strip = np.asarray(Image.open(io.BytesIO(encode_strip(frames))).convert("L")).astype(int)

    assert strip.shape == (64, 8 * 64)
    centres = strip[32, 32::64]
    np.testing.assert_allclose(centres, 32 * np.arange(8), atol=8)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(100, [43, 45, 47, 49, 51, 53, 55, 57]), (15, [0, 2, 4, 6, 8, 10, 12, 14]), (1, [0] * 8)],
)
def test_a_thumbnail_shows_the_middle_window(count, expected):
    np.testing.assert_array_equal(middle_frames(count, 8, 2), np.array(expected) - (1 if count == 100 else 0))


def test_ticks_are_round_and_span_the_range():
    assert nice_ticks(0, 3.7) == [0, 1, 2, 3, 4]
    assert nice_ticks(0, 0.0021) == [0, 0.001, 0.002, 0.003]
    assert nice_ticks(-0.3, 1) == [-0.5, 0, 0.5, 1]
    assert len(nice_ticks(5, 5)) > 1


@pytest.mark.parametrize("wanted", [[10, 10, 10], [3, 90, 88, 91], [50], list(range(8))])
def test_labels_do_not_overlap_and_keep_their_order(wanted):
    places = spread(wanted, 12, 0, 100)

    ordered = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gaps = np.diff([places[i] for i in ordered])
    assert all(gaps >= 11.9) and all(0 <= place <= 100 for place in places)


def test_long_curves_keep_their_ends():
    points = [(epoch, epoch**2) for epoch in range(1, 1001)]

    kept = thinned(points)

    assert len(kept) == 200 and kept[0] == points[0] and kept[-1] == points[-1]


def test_queries_are_the_first_of_each_class():
    candidates = [
        JudgedVideo("metrics", "label", "features", "1", "0", f"{label}-{number}", label, label, ("a",))
        for number in (2, 1, 0)
        for label in ("walk", "run", "jump")
    ]

    assert [video.video_id for video in choose_queries(candidates, 4)] == ["jump-0", "jump-1", "run-0", "walk-0"]
    assert [video.video_id for video in choose_queries(candidates, 2)] == ["jump-0", "run-0"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("environment.json", b"[1]", r"environment\.json cannot be read as JSON \(expected an object\)"),
        ("environment.json", b"\xff", r"environment\.json cannot be read as JSON"),
        ("failures.csv", b"\xff", r"failures\.csv cannot be read as CSV"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(tmp_path, name, content, message):
    run = unjudged_run(tmp_path / "run")
    (run / name).write_bytes(content)

    with pytest.raises(RunError, match=message):
        build_report(RunDirectory(run))


def test_videos_are_thinned_evenly():
    assert every_nth(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert every_nth(list(range(3)), 5) == [0, 1, 2]


def test_the_map_places_similar_videos_together_and_is_repeatable():
    random = np.random.default_rng(0)
    vectors = np.repeat(np.eye(3), 20, axis=0) + 0.01 * random.normal(size=(60, 3))

    places = tsne(vectors.astype(np.float32))

    centres = places.reshape(3, 20, 2).mean(axis=1)
    spread_of = np.linalg.norm(places.reshape(3, 20, 2) - centres[:, None], axis=-1).max()
    between = min(np.linalg.norm(centres[i] - centres[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert spread_of < between / 2
    np.testing.assert_array_equal(places, tsne(vectors.astype(np.float32)))


def test_the_map_fills_the_page_with_one_scale():
    places = fit_to_page(np.array([[0.0, 0.0], [2.0, 1.0], [1.0, 0.5]]))

    assert all(0 <= x <= 640 and 0 <= y <= 460 for x, y in places)
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == 604 and y1 - y0 == 302 and (x2, y2) == (320, 230)


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_the_map_of_a_collapsed_network_is_one_point(value):
    places = fit_to_page(tsne(np.full((10, 4), value, np.float32)))

    assert set(places) == {(320, 230)}


def test_durations_in_words():
    assert [duration(s) for s in (9.6, 75, 3 * 3600 + 125)] == ["10 s", "1 min 15 s", "3 h 2 min"]


def test_names_break_between_words_and_stay_escaped():
    assert breakable("HandstandPushups") == "Handstand<wbr>Pushups"
    assert breakable("brush_hair") == "brush_<wbr>hair" and breakable("YoYo<b>") == "Yo<wbr>Yo&lt;b&gt;"
