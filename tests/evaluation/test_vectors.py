"""`evaluate --features`: vectors from any encoder are judged as those of a run."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hdc_keras.data.from_experiment import load_videos
from hdc_keras.evaluation.job import evaluate
from hdc_keras.evaluation.splits import load_splits
from hdc_keras.evaluation.vectors import sources_of
from hdc_keras.features.embed_job import embed
from tests.conftest import call_command
from tests.evaluation.conftest import experiment_on

# 12 videos of two classes in six groups: the first number of a vector tells the class.
NAMES = [f"{label}/{group}{clip}.mp4" for label in ("jump", "run") for group in "abc" for clip in (0, 1)]


def write_table(folder, **columns):
    """`vectors.parquet`, and a folder with a manifest of the same videos."""
    rng = np.random.default_rng(0)
    vectors = [[2.0 * name.startswith("run") + rng.normal(0, 0.1), *rng.normal(0, 1, 3)] for name in NAMES]
    columns = {"video_id": NAMES, "vjepa": vectors} | columns
    pq.write_table(
        pa.table({name: values for name, values in columns.items() if values is not None}), folder / "v.parquet"
    )
    lines = [f"{name},{name.split('/')[0]},{name[:-5]},{'test' if '/c' in name else 'train'}" for name in NAMES]
    (folder / "videos").mkdir()
    for name in NAMES:
        (folder / "videos" / name).parent.mkdir(exist_ok=True)
        (folder / "videos" / name).touch()
    (folder / "videos" / "manifest.csv").write_text("\n".join(["path,label,group,split", *lines]))


def judged(folder, *arguments, protocols=("linear",)):
    """Run the command, and return its exit code and output, and the results by protocol."""
    asked = [argument for protocol in protocols for argument in ("--protocol", protocol)]
    done = call_command(folder, "evaluate", "--features", "v.parquet", "--out", "judged", *asked, *arguments)
    results = {}
    for file in (folder / "judged" / "results").glob("*.json"):
        result = json.loads(file.read_text())
        results[result["protocol"]] = result
    return done, results


@pytest.fixture
def embedded(run, ucf101, tmp_path):
    """The vectors of all videos of a run, as `embed` writes them."""
    experiment = experiment_on(ucf101)
    embed(run, experiment, load_videos(experiment).records, tmp_path / "v.parquet")
    return experiment


@pytest.mark.parametrize("from_file", [False, True])
def test_vectors_of_a_run_get_the_figures_of_the_run(run, ucf101, embedded, tmp_path, from_file):
    protocols = ["linear", "knn", "retrieval", "retrieval-vcop"]
    expected = evaluate(run, embedded, load_splits(embedded, "own")[0], protocols, out=tmp_path / "of-run")
    data = [] if from_file else ["--data", ucf101]
    settings = ["--set", "evaluate.knn_neighbours=3", "--set", "evaluate.recall_at=[1,5]"]

    done, found = judged(tmp_path, *data, *settings, protocols=protocols)

    assert done.code == 0, done.out
    assert set(found) == set(protocols)
    for protocol, result in expected.items():
        for key in ("metrics", "confusions", "chance", "counts", "settings", "version", "views", "splits", "dataset"):
            assert found[protocol][key] == result[key], (protocol, key)
        assert "random_weights" not in found[protocol]
    compared = call_command(tmp_path, "compare", "of-run", "judged")
    assert compared.code == 0 and "is not compared" not in compared.out
    assert compared.out.count("judged") >= len(protocols), compared.out


def test_vectors_from_elsewhere_with_the_labels_of_a_set(tmp_path):
    write_table(tmp_path)

    done, found = judged(tmp_path, "--data", "videos", protocols=["linear", "knn"])

    assert done.code == 0, done.out
    assert found["linear"]["metrics"]["label"]["features"]["top1"] == 1.0
    assert found["linear"]["split"] == {"train": 8, "val": 0, "test": 4}
    assert found["linear"]["architecture"] == "v" and found["linear"]["chance"] == {"label": 0.5}
    assert "random" not in done.out and "views" not in found["linear"]


def test_vectors_are_found_by_path_where_there_are_no_ids(tmp_path):
    write_table(tmp_path, video_id=None, path=[str(tmp_path / "videos" / name) for name in NAMES])

    done, found = judged(tmp_path, "--data", "videos")

    assert done.code == 0, done.out
    assert found["linear"]["counts"] == {"asked": 12, "decoded": 12, "failed": {}}


def test_labels_of_the_file_are_divided_by_group(tmp_path):
    groups = [name[:-5] for name in NAMES]
    write_table(tmp_path, label=[name.split("/")[0] for name in NAMES], group=groups, label_other=["a", "b"] * 6)

    done, found = judged(tmp_path, "--set", "data.holdout=0.34")

    assert done.code == 0, done.out
    assert found["linear"]["split"] == {"train": 8, "val": 0, "test": 4}
    assert list(found["linear"]["metrics"]) == ["label"]


def test_videos_without_a_vector_are_listed_up_to_a_limit(tmp_path):
    write_table(tmp_path)
    table = pq.read_table(tmp_path / "v.parquet")
    pq.write_table(table.slice(1), tmp_path / "v.parquet")

    done, found = judged(tmp_path, "--data", "videos")
    assert done.code == 0, done.out
    assert found["linear"]["counts"]["decoded"] == 11
    (cause,) = found["linear"]["counts"]["failed"].values()
    assert cause == "no row in v.parquet" and cause in done.out.replace("\n", " ")

    pq.write_table(table.slice(6), tmp_path / "v.parquet")
    done, _ = judged(tmp_path, "--data", "videos")
    assert done.code == 1 and "6 of 12 videos have no vector" in done.out


def test_several_columns_are_sources_together_and_alone():
    assert sources_of("linear", ["a", "b"]) == {"features": ["a", "b"], "a": ["a"], "b": ["b"]}
    assert sources_of("knn", ["a"]) == {"features": ["a"]}
    names = ["P2", "P5", "P2_spatial", "P5_temporal", "embedding", "clip"]
    assert sources_of("linear", names) == {
        "features": ["P2", "P5"],
        "P2": ["P2"],
        "P5": ["P5"],
        "spatial embeddings": ["P2_spatial"],
        "temporal embeddings": ["P5_temporal"],
        "all embeddings": ["P2_spatial", "P5_temporal"],
        "clip": ["clip"],
    }
    assert sources_of("retrieval-vcop", names)["features"] == ["P5"]


VECTORS = [[0.0, 1.0]] * 12


@pytest.mark.parametrize(
    ("columns", "arguments", "said"),
    [
        (
            {"vjepa": None},
            [],
            "v.parquet: expected a column of vectors, which are lists of numbers. Received: video_id",
        ),
        ({"video_id": None}, [], "v.parquet: expected a column `video_id` or `path`. Received: vjepa"),
        ({"vjepa": [[0.0], *VECTORS[1:]]}, [], "row 2: the vector `vjepa` has 2 numbers"),
        ({"vjepa": [*VECTORS[1:], None]}, [], "row 12: the vector `vjepa` has no value"),
        ({"vjepa": [[0.0, None], *VECTORS[1:]]}, [], "row 1: the vector `vjepa` contains a null"),
        ({"vjepa": [*VECTORS[1:], [0.0, np.nan]]}, [], "row 12: the vector `vjepa` has numbers that are not finite"),
        ({"vjepa": [[]] * 12}, [], "expected a column of vectors"),
        ({"video_id": ["a", "a", *NAMES[2:]]}, [], "several rows are about `a`"),
        ({"video_id": [None, *NAMES[1:]]}, [], "row 1: there is no `video_id`"),
        ({"split": ["train"] * 11 + ["dev"]}, [], "the split `dev` is unknown. Expected train, val, test, or null"),
        ({"split": ["train"] * 11 + [None]}, [], "some rows have a split and others do not"),
        ({"label_a/b": ["x"] * 12}, [], "labels `a/b`: the name becomes part"),
        ({"split": ["train", "test"] * 6, "group": ["g"] * 12}, [], "group `g` is in several splits (test, train)"),
        ({"start": [2.0] * 12, "end": [1.0] * 12}, [], "row 1: expected `start` < `end` in seconds"),
        ({"start": ["1:30"] * 12, "end": ["2:00"] * 12}, [], "row 1: expected `start` < `end` in seconds"),
        ({"label": VECTORS}, [], "the column `label` must hold texts. Received: list"),
        ({}, [], "Add labels (class folders, or a `label` column)"),
        ({}, ["--data", "nowhere"], "no such file or folder"),
        ({}, ["--protocol", "linear-cvrl"], "--protocol linear-cvrl needs the vectors of single views"),
        ({}, ["--protocol", "finetune-vcop"], "--protocol finetune-vcop needs a network to train"),
        ({}, ["--protocol", "nonsense"], "unknown protocol `nonsense`"),
        ({}, ["--run", "runs/mine"], "--run is about runs. Leave it out, or leave out --features"),
        ({}, ["--weights", "raw"], "--weights is about runs"),
        ({}, ["--splits", "all"], "--splits all: expected own, or all with --data"),
    ],
)
def test_what_cannot_be_judged_is_refused_by_name(tmp_path, columns, arguments, said):
    write_table(tmp_path, **columns)

    done, _ = judged(tmp_path, *arguments)

    assert done.code in (1, 2) and said in " ".join(done.out.split()), done.out
    assert not (tmp_path / "judged").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such file"), ("folder", "is a folder"), (b"text", "cannot be read as a Parquet file")],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, content, said):
    if content == "folder":
        (tmp_path / "v.parquet").mkdir()
    elif content:
        (tmp_path / "v.parquet").write_bytes(content)

    done, _ = judged(tmp_path)

    assert done.code == 1 and said in " ".join(done.out.split())


def test_a_run_or_vectors_are_needed_and_a_folder_for_the_results(tmp_path):
    neither = call_command(tmp_path, "evaluate", "--protocol", "linear")
    no_folder = call_command(tmp_path, "evaluate", "--features", "v.parquet", "--protocol", "linear")

    assert neither.code == 2 and "--run RUN, or --features FILE.parquet" in neither.out
    assert no_folder.code == 2 and "--features needs --out DIR" in no_folder.out


def test_missing_labels_of_pandas_are_no_class(tmp_path):
    write_table(tmp_path, label=[1.0, np.nan] + [2.0] * 10)

    done, _ = judged(tmp_path)

    assert done.code == 1 and "nan" not in done.out


def test_factors_are_judged_and_drawn_without_random_weights(tmp_path):
    labels = {"label_what": [name.split("/")[0] for name in NAMES], "label_where": ["a", "b"] * 6}
    write_table(tmp_path, group=[name[:-5] for name in NAMES], **labels)

    done, found = judged(tmp_path, "--set", "data.holdout=0.34", protocols=["factors"])

    assert done.code == 0, done.out
    assert set(found["factors"]["metrics"]) == {"what", "where"}
    assert len(list((tmp_path / "judged" / "results").glob("*.png"))) == 1


def test_two_encoders_on_their_own_labels_are_compared(tmp_path):
    split = ["test" if "/c" in name else "train" for name in NAMES]
    write_table(tmp_path, label=[name.split("/")[0] for name in NAMES], split=split)
    assert judged(tmp_path)[0].code == 0
    (tmp_path / "v.parquet").rename(tmp_path / "w.parquet")
    arguments = ("--features", "w.parquet", "--out", "other", "--protocol", "linear")
    other = call_command(tmp_path, "evaluate", *arguments)
    assert other.code == 0, other.out

    compared = " ".join(call_command(tmp_path, "compare", "judged", "other").out.split())

    assert "no comparable results" not in compared
    assert "the architectures differ: w for other, v for judged" in compared


def test_parts_of_a_file_need_their_own_vectors(tmp_path):
    paths = [str(tmp_path / "videos" / NAMES[0])] * 2 + [str(tmp_path / "videos" / name) for name in NAMES[2:]]
    starts, ends = ["0", "1"] + [""] * 10, ["1", "2"] + [""] * 10
    write_table(tmp_path, video_id=None, path=paths, start=starts, end=ends)
    rows = zip(paths, starts, ends, ["train"] * 4 + ["test"] * 2 + ["train"] * 4 + ["test"] * 2, strict=True)
    lines = [f"{path},{path.split('/')[-2]},{start},{end},{split}" for path, start, end, split in rows]
    (tmp_path / "parts.csv").write_text("\n".join(["path,label,start,end,split", *lines]))

    done, found = judged(tmp_path, "--data", "parts.csv")
    assert done.code == 0, done.out
    assert found["linear"]["counts"]["decoded"] == 12

    table = pq.read_table(tmp_path / "v.parquet").drop_columns(["start", "end"]).slice(1)
    pq.write_table(table, tmp_path / "v.parquet")
    done, _ = judged(tmp_path, "--data", "parts.csv")
    assert done.code == 1 and "2 of 12 videos have no vector" in done.out


def test_results_of_vectors_and_of_runs_have_folders_of_their_own(run, tmp_path):
    write_table(tmp_path, label=[name.split("/")[0] for name in NAMES], split=["train", "test"] * 6)
    assert judged(tmp_path)[0].code == 0

    arguments = ("--features", "v.parquet", "--out", run.path, "--protocol", "linear")
    into_run = call_command(tmp_path, "evaluate", *arguments)
    into_judged = call_command(tmp_path, "evaluate", "--run", run.path, "--out", "judged", "--protocol", "linear")

    assert into_run.code == 2 and "holds a run. Choose another folder" in " ".join(into_run.out.split())
    assert into_judged.code == 2 and "holds results of `evaluate --features`" in " ".join(into_judged.out.split())
