"""The page of `hdc-keras finetune`: how good a classifier is, what it confuses, and the videos that it got wrong."""

import csv
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from hdc_keras.classification.directory import ClassifierDirectory
from hdc_keras.data.records import VideoRecord, counted
from hdc_keras.report.charts import LineChart, Series, line_chart
from hdc_keras.report.class_tables import class_panel
from hdc_keras.report.page import percent, render_page
from hdc_keras.report.thumbnails import ThumbnailSheet
from hdc_keras.results.store import PRETRAINED, JudgedVideo
from hdc_keras.version import __version__

_MISTAKES = 48
_WAYS = {
    "frozen": "a linear classifier on the frozen features",
    "whole": "the whole network, trained with labels",
}
# Columns of `training.csv`: of the training videos, and of those held out.
_CURVES = {"Cross-entropy": ("loss", "val_loss"), "Share of clips right": ("top1", "val_top1")}


def build_classifier_page(
    directory: ClassifierDirectory,
    records: Sequence[VideoRecord],
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Build the page as one HTML file that needs no network.

    Args:
        directory: a finished classifier.
        records: its test videos, for the pictures.
        progress: called with (videos decoded, total videos).

    Raises:
        RunError: the classifier is not finished, or its files are damaged.
    """
    facts, experiment = directory.facts(), directory.experiment()
    answers = directory.answers()
    judged = [
        JudgedVideo(
            PRETRAINED,
            facts["column"],
            facts["chosen"],
            "own",
            "0",
            row["video_id"],
            row["label"],
            row["predicted"],
            (),
        )
        for row in answers
    ]
    wrong = [row for row in answers if row["label"] != row["predicted"]]
    # The surest mistakes first: they may be wrong labels.
    wrong.sort(key=lambda row: -float(row["score"]))
    shown = wrong[:_MISTAKES]
    sheet = ThumbnailSheet()
    by_id = {record.video_id: record for record in records}
    sheet.add_videos([by_id[row["video_id"]] for row in shown if row["video_id"] in by_id], experiment.data, progress)
    now = datetime.now().astimezone()
    content = {
        "name": facts["name"],
        "folder": str(directory.path),
        "quoted_run": shlex.quote(str(facts["run"])),
        "lead": _lead(facts),
        "rows": _rows(facts),
        "panels": [class_panel(facts["column"], judged, [])],
        "over": "",
        "mistakes": shown,
        "mistakes_in_all": f"{counted(wrong, 'test video')} {'is' if len(wrong) == 1 else 'are'} wrong",
        "mistakes_shown": f"; the {len(shown)} surest are shown" if len(shown) < len(wrong) else "",
        "charts": _charts(_read(directory.training_file) if directory.training_file.exists() else []),
        "sheet": sheet,
        "frame_shape": experiment.data.decode_size,
        "made": f"{now.day} {now:%B %Y, %H:%M}",
        "version": __version__,
    }
    return render_page(content, "classifier.html")


def _lead(facts: Mapping[str, Any]) -> str:
    test = facts["test"]
    low, high = test["interval"]
    return (
        f"{percent(test['top1'])} % of {test['videos']} test videos are right; 95 % interval {percent(low)} to "
        f"{percent(high)} %. Always naming the most frequent class would be right in {percent(test['chance'])} %."
    )


def _rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the page says about the classifier, by name."""
    videos, test, seen = facts["videos"], facts["test"], facts["seen_in_pretraining"]
    rows = [
        ("label", facts["column"]),
        ("classes", str(len(facts["classes"]))),
        ("chosen", f"{_WAYS[facts['chosen']]}. {facts['note']}".strip(". ")),
        *(
            (f"{name}, on videos held out", f"{percent(one['top1'])} % right, cross-entropy {one['loss']:.2f}")
            for name, one in facts["candidates"].items()
        ),
        ("network", f"pretrained: {facts['run']}" if facts["pretrained"] else "random weights"),
        *(
            (f"{side} videos", f"{counts['videos']} in {counts['groups']} groups")
            for side, counts in videos.items()
            if counts["videos"]
        ),
        ("mean over classes", f"{percent(test['mean_class_accuracy'])} %"),
    ]
    if facts["untrained_classes"]:
        rows.append(("classes without training videos", ", ".join(facts["untrained_classes"])))
    if seen:
        rows.append(("test videos in pretraining", f"{seen['test_videos']} of {seen['of']}, without labels"))
    if facts["failed"]:
        rows.append(("videos that cannot be decoded", str(len(facts["failed"]))))
    return rows


def _charts(rows: Sequence[Mapping[str, str]]) -> list[LineChart]:
    charts = []
    for title, names in _CURVES.items():
        series = [
            Series(title_of, style, [(float(row["epoch"]), float(row[name])) for row in rows if row.get(name)])
            for name, title_of, style in zip(
                names, ("training", "held out"), ("task-spatial", "task-temporal"), strict=True
            )
        ]
        series = [line for line in series if line.points]
        if series:
            charts.append(line_chart(title, series, (1.0, float(rows[-1]["epoch"]))))
    return charts


def _read(file: Any) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
