import csv
import io
import json
import os
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hdc_keras_cli.compare import _table
from rich.console import Console

from hdc_keras.errors import ConfigError, RunError
from hdc_keras.results.comparison import Comparison, Difference, compare_runs, distinct_names, paired_bootstrap
from hdc_keras.results.comparison_tables import main_rows, render_comparison
from hdc_keras.results.published import PUBLISHED
from tests.results.saved_runs import judgements, write_result, write_run

VIDEOS = [f"{label}-{number}" for label in ("run", "jump") for number in range(100)]


def random_correctness(share, seed):
    """Whether each video is predicted correctly; about `share` of them are."""
    random = np.random.default_rng(seed)
    return {video: bool(random.random() < share) for video in VIDEOS}


@pytest.fixture
def two_runs(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    for run, share in zip(runs, (0.5, 0.7), strict=True):
        write_result(run, "linear", judgements(random_correctness(share, seed=1)))
    return runs


def slow_bootstrap(differences, draws, seed):
    """The definition: repeatedly draw as many videos as there are, with replacement, and take their mean."""
    random = np.random.default_rng(seed)
    means = []
    for _ in range(draws):
        drawn = [differences[random.integers(len(differences))] for _ in differences]
        means.append(sum(drawn) / len(drawn))
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("values", [(-1, 0, 1), (-1, -2 / 3, -1 / 3, 0, 1 / 3, 1)])
def test_the_bootstrap_agrees_with_a_loop_over_videos(values):
    differences = np.random.default_rng(1).choice(values, 60)

    fast = paired_bootstrap(differences, draws=50_000)
    slow = slow_bootstrap(differences, draws=4_000, seed=2)

    # The mean of 60 such differences moves in steps of 1/60 or 1/180, and 4,000 draws give quantiles to about a step.
    np.testing.assert_allclose(fast, slow, atol=1.5 / 60)


def test_the_bootstrap_of_few_videos_equals_the_exact_distribution():
    # One of ten videos differs. How often it is drawn is binomial, with 2.5 % and 97.5 % quantiles of 0 and 3.
    assert paired_bootstrap(np.array([1.0] + [0.0] * 9)) == pytest.approx((0.0, 0.3))
    # With three videos there are 27 equally likely draws, so the worst and the best each have more than 2.5 %.
    means = [sum(drawn) / 3 for drawn in product((-1, 0, 1), repeat=3)]
    assert paired_bootstrap(np.array([-1.0, 0.0, 1.0])) == (min(means), max(means))


def test_the_bootstrap_has_the_standard_error_of_a_paired_mean():
    random = np.random.default_rng(3)
    first, second = random.random(5_000) < 0.6, random.random(5_000) < 0.65
    differences = second.astype(float) - first

    low, high = paired_bootstrap(differences)

    error = differences.std() / np.sqrt(len(differences))
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.03)
    assert (high + low) / 2 == pytest.approx(differences.mean(), abs=0.1 * error)


def test_pairing_narrows_the_interval_if_runs_fail_on_the_same_videos():
    first = np.random.default_rng(4).random(1_000) < 0.5
    second = first.copy()
    second[:20] = True

    low, high = paired_bootstrap(second.astype(float) - first)

    unpaired = 2 * 1.96 * np.sqrt(2 * 0.25 / 1_000)
    assert high - low < unpaired / 5


def test_the_difference_of_a_run_to_itself_is_exactly_zero(two_runs):
    (row,) = compare_runs([two_runs[0], two_runs[0]]).rows

    (difference,) = row.differences
    assert difference.value == 0 and difference.interval == (0, 0) and difference.videos == len(VIDEOS)
    assert not difference.excludes_zero


def test_intervals_are_reproducible(two_runs):
    assert compare_runs(two_runs) == compare_runs(two_runs)


def test_of_several_results_the_newest_comparable_one_is_compared_and_named(two_runs):
    videos = judgements(random_correctness(0.5, 1))
    for run, stems in ((two_runs[0], ("old", "new")), (two_runs[1], ("ten", "thirty"))):
        for age, stem in enumerate(stems):
            views = "10x3" if stem == "thirty" else "10x1"
            write_result(run, "knn", videos, stem=f"moving-shapes-{stem}", views=views)
            for file in (run / "results").glob(f"knn-moving-shapes-{stem}.json"):
                os.utime(file, (1000 + age, 1000 + age))

    comparison = compare_runs(two_runs)

    assert [row.protocol for row in comparison.rows] == ["knn", "linear"]
    assert comparison.notes == (
        "knn-moving-shapes: a has 2 results; compared is the newest, knn-moving-shapes-new (checkpoint "
        "step-000000001.keras, splits 1, views 10x1).",
        "knn-moving-shapes: b has 2 results; compared is the newest that is comparable, knn-moving-shapes-ten "
        "(checkpoint step-000000001.keras, splits 1, views 10x1).",
    )


def test_rows_hold_values_and_the_difference_to_the_first_run(two_runs):
    comparison = compare_runs(two_runs)

    (row,) = comparison.rows
    assert comparison.runs == ("a", "b") and not comparison.notes
    assert (row.protocol, row.version, row.dataset) == ("linear", 1, "moving-shapes")
    assert (row.column, row.source, row.metric) == ("label", "features", "top1")
    (difference,) = row.differences
    assert difference.value == pytest.approx(row.values[1] - row.values[0])
    assert difference.interval[0] < difference.value < difference.interval[1] and difference.excludes_zero


def test_seeds_and_splits_are_first_averaged_for_each_video(tmp_path):
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    write_result(first, "linear", judgements(dict.fromkeys(VIDEOS, False)))
    thrice = [judgements({v: seed == 0 for v in VIDEOS}, seed=seed) for seed in range(3)]
    write_result(second, "linear", [line for lines in thrice for line in lines], seeds=[0, 1, 2])

    comparison = compare_runs([first, second])

    # Every video is better by a third, so every resample is too.
    (difference,) = comparison.rows[0].differences
    assert difference.interval == pytest.approx((1 / 3, 1 / 3)) and difference.videos == len(VIDEOS)
    assert comparison.notes == ("linear-moving-shapes: the seeds of the evaluation differ: 0, 1, 2 for b, 0 for a.",)


def test_differences_are_over_the_videos_that_both_runs_have(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    write_result(runs[0], "knn", judgements(dict.fromkeys(VIDEOS[:150], True)))
    write_result(runs[1], "knn", judgements(dict.fromkeys(VIDEOS[50:100], True) | dict.fromkeys(VIDEOS[150:], False)))

    comparison = compare_runs(runs)

    (difference,) = comparison.rows[0].differences
    assert difference.videos == 50 and difference.value == 0
    assert comparison.notes == (
        "knn-moving-shapes: b was evaluated on 100 test videos and a on 150. Differences of top1 and R@1 are over the "
        "50 that both have.",
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": 2}, "`version` is 2 instead of 1"),
        ({"settings": {"neighbours": 5}}, "setting `neighbours` is 5 instead of 20"),
        ({"settings": {"neighbours": 20, "l2": 0.1}}, "setting `l2` is 0.1 instead of missing"),
        ({"views": "10x3"}, "`views` is 10x3 instead of 10x1"),
        ({"splits": ["1", "2", "3"]}, "`splits` is 1, 2, 3 instead of 1"),
    ],
)
def test_results_of_other_protocols_or_settings_are_not_compared(two_runs, changed, message):
    write_result(two_runs[1], "linear", judgements(random_correctness(0.7, 1)), **changed)

    comparison = compare_runs(two_runs)

    assert not comparison.rows
    assert comparison.notes == (f"linear-moving-shapes: b is not compared with a: {message}.",)


def test_another_data_set_of_the_same_name_is_not_compared(two_runs):
    others = {f"walk-{number}": True for number in range(10)}
    write_result(two_runs[0], "knn", judgements(random_correctness(0.5, 1)), dataset="/x/clips.csv", stem="clips")
    write_result(two_runs[1], "knn", judgements(others), dataset="/y/clips.csv", stem="clips")

    assert "its data set is /y/clips.csv instead of /x/clips.csv" in compare_runs(two_runs).notes[0]


def test_a_data_set_may_be_moved(two_runs):
    for run, folder in zip(two_runs, ("/x", "/y"), strict=True):
        write_result(run, "knn", judgements(random_correctness(0.5, 1)), dataset=f"{folder}/clips.csv", stem="clips")

    assert [row.protocol for row in compare_runs(two_runs).rows] == ["knn", "linear"]


def test_results_for_other_labels_of_the_same_videos_are_not_compared(two_runs):
    videos = [line | {"label": "fall"} for line in judgements(random_correctness(0.7, 1))]
    write_result(two_runs[1], "linear", videos)

    assert "200 of its test videos have different labels" in compare_runs(two_runs).notes[0]


def test_results_without_per_video_predictions_have_no_intervals(two_runs):
    (two_runs[1] / "results" / "linear-moving-shapes.videos.csv").unlink()

    comparison = compare_runs(two_runs)

    assert comparison.rows[0].differences[0].interval is None
    assert "because b has no per-video predictions. Evaluate it again" in comparison.notes[0]


def test_for_retrieval_only_the_nearest_neighbour_has_an_interval(two_runs):
    for run in two_runs:
        metrics = {"label": {"features": {"R@1": 0.5, "R@5": 0.8}, "P2": {"R@1": 0.4, "R@5": 0.7}}}
        write_result(run, "retrieval", judgements(random_correctness(0.5, 1)), metrics=metrics)

    rows = {(row.source, row.metric): row for row in compare_runs(two_runs).rows if row.protocol == "retrieval"}

    with_interval = [key for key, row in rows.items() if row.differences[0].interval]
    assert with_interval == [("features", "R@1")] and len(rows) == 4


def test_runs_without_a_result_are_listed(two_runs, tmp_path):
    third = write_run(tmp_path / "c")
    write_result(third, "linear", judgements(random_correctness(0.6, 5)))
    for run in (*two_runs[:1], third):
        write_result(run, "knn", judgements(random_correctness(0.6, 5)))
    write_result(third, "retrieval", judgements(random_correctness(0.6, 5)))

    comparison = compare_runs([*two_runs, third])

    knn, linear = comparison.rows
    assert knn.values[1] is None and knn.differences[0] is None and knn.differences[1].value == 0
    assert None not in linear.values
    assert comparison.notes == (
        "knn-moving-shapes: no result in b.",
        "retrieval-moving-shapes: no result in a, b.",
    )


def test_names_are_as_short_as_possible_but_distinct(tmp_path):
    assert distinct_names([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    assert distinct_names([tmp_path / "x" / "one", tmp_path / "x" / "two"]) == ["one", "two"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, "holds no run: there is no config.yaml"),
        (write_run, "has no results. Evaluate the run first: hdc-keras evaluate --run"),
    ],
)
def test_a_folder_without_a_run_or_results_is_refused(two_runs, tmp_path, make, message):
    with pytest.raises(RunError, match=message):
        compare_runs([two_runs[0], make(tmp_path / "empty")])


def test_a_single_run_is_refused(two_runs):
    with pytest.raises(ConfigError, match="two runs or more"):
        compare_runs(two_runs[:1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"protocol"', r"linear-moving-shapes\.json: cannot be read as a result"),
        ('{"protocol": "linear", "version": 1}', r"not a result, because these keys are missing: dataset, metrics"),
    ],
)
def test_a_damaged_result_is_an_error(two_runs, content, message):
    (two_runs[1] / "results" / "linear-moving-shapes.json").write_text(content)

    with pytest.raises(RunError, match=message):
        compare_runs(two_runs)


def test_the_published_figures_are_those_of_the_papers():
    fine_tuned = {(f.method, f.network, f.dataset): f.percent for f in PUBLISHED if f.task == "fine-tuning"}

    assert len(fine_tuned) == 28 and all(figure.source for figure in PUBLISHED)
    assert fine_tuned["HDC", "R(2+1)D-18", "UCF101"] == 76.2 and fine_tuned["TCLR", "R3D-18", "HMDB51"] == 53.6
    pcl = [f.percent for f in PUBLISHED if f.method == "PCL (VCP)" and f.task == "retrieval"]
    assert pcl == [55.1, 71.2, 78.9, 85.5, 92.3]


def test_every_file_format_holds_the_comparison(two_runs):
    comparison = compare_runs(two_runs)
    (row,) = comparison.rows
    (difference,) = row.differences

    as_json = json.loads(render_comparison(comparison, PUBLISHED, ".json"))
    as_csv = list(csv.DictReader(render_comparison(comparison, (), ".csv").splitlines()))
    markdown = render_comparison(comparison, PUBLISHED, ".md")

    assert as_json["runs"] == ["a", "b"] and len(as_json["published"]) == len(PUBLISHED)
    assert as_json["rows"][0]["differences"][0] == {
        "value": difference.value,
        "interval": list(difference.interval),
        "videos": 200,
    }
    assert [line["run"] for line in as_csv] == ["a", "b"] and float(as_csv[1]["low"]) == difference.interval[0]
    shown = f"| {100 * difference.value:+.1f} [{100 * difference.interval[0]:+.1f}, "
    assert shown in markdown and "## Published: retrieval" in markdown and "one block per stage" in markdown
    assert all(line.count("|") == 9 for line in markdown.split("\n\n")[2].splitlines())


def test_the_command_prints_the_comparison_and_writes_a_file(two_runs, hdc_keras_in_process, tmp_path):
    done = hdc_keras_in_process("compare", *two_runs, "--published", "--out", "out/table.md")

    assert done.code == 0, done.out
    for expected in (
        "linear v1",
        "difference to a",
        "features",
        "top1",
        "Published: fine-tuning",
        "VideoMoCo",
        "[1] third-party list",
        "Wrote",
    ):
        assert expected in done.out
    assert "| top1 |" in (tmp_path / "out" / "table.md").read_text()


def test_the_command_refuses_other_formats_and_folders(two_runs, hdc_keras_in_process, tmp_path):
    wrong_file = hdc_keras_in_process("compare", *two_runs, "--out", "table.xlsx")
    no_run = hdc_keras_in_process("compare", two_runs[0], tmp_path)

    assert wrong_file.code == 2 and ".md, .csv, .json" in wrong_file.out
    assert no_run.code == 1 and "holds no run" in no_run.out and "Traceback" not in no_run.out


def test_the_main_rows_are_those_of_the_network_and_of_its_best_level(two_runs):
    (row,) = compare_runs(two_runs).rows
    sources = {"features": 0.4, "P2": 0.2, "P3": 0.5, "P5": 0.3, "all embeddings": 0.9}
    rows = tuple(
        replace(row, protocol=protocol, source=source, values=(value, 0.0))
        for protocol in ("linear", "factors")
        for source, value in sources.items()
    )

    shown = main_rows(Comparison(("a", "b"), rows, ()))

    assert [row.source for row in shown.rows if row.protocol == "linear"] == ["features", "P3"]
    assert [row.source for row in shown.rows if row.protocol == "factors"] == list(sources)


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("runs", [2, 4])
def test_no_figure_is_cut_or_broken_in_a_narrow_terminal(two_runs, columns, runs):
    (row,) = compare_runs(two_runs).rows
    names = tuple(f"moving-shapes-with-a-long-name-{number}" for number in range(runs))
    differences = tuple(Difference(-0.123, (-0.234, -0.012), 40) for _ in names[1:])
    rows = tuple(
        replace(row, source=source, column="appearance", values=(0.765,) * runs, differences=differences)
        for source in ("features", "temporal embeddings")
    )
    screen = Console(width=columns, file=io.StringIO())

    screen.print(_table(Comparison(names, rows, ())))

    printed = screen.file.getvalue()
    assert "…" not in printed and max(map(len, printed.splitlines())) <= columns
    words = printed.split()
    assert words.count("76.5") == 2 * runs and words.count("-12.3") == 2 * (runs - 1)
    assert words.count("[-23.4,") == words.count("-1.2]") == 2 * (runs - 1)
