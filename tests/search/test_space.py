"""The nearest videos, exactly and by an index, and groups of almost equal ones, against their definitions."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hdc_keras.data.records import read_manifest
from hdc_keras.errors import ConfigError, RunError
from hdc_keras.features.vector_table import read_vector_table
from hdc_keras.search import approximate, space
from hdc_keras.search.approximate import ApproximateIndex
from hdc_keras.search.duplicates import manifest_of, near_duplicates
from hdc_keras.search.space import SearchSpace


def write(file, arrays, **columns):
    count = len(next(iter(arrays.values())))
    columns = {"video_id": [f"{number:05d}.mp4" for number in range(count)]} | columns
    pq.write_table(pa.table(columns | {name: list(values) for name, values in arrays.items()}), file)
    return read_vector_table(file)


def embeddings(count, seed=0):
    """Two heads of each task, and columns that must not count; clusters of about four videos."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, count // 4), 5))
    near = centres[rng.integers(0, len(centres), count)] + 0.3 * rng.normal(size=(count, 5))
    names = ("P2", "P5", "P2_spatial", "P3_spatial", "P5_temporal", "embedding")
    return {name: (near @ rng.normal(size=(5, 6))).astype("float32") for name in names}


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [2**24, 100])
def test_the_nearest_are_those_of_a_slow_comparison(tmp_path, monkeypatch, block):
    monkeypatch.setattr(space, "_BLOCK", block)
    arrays = embeddings(60)
    table = write(tmp_path / "t.parquet", arrays)
    spatial = unit(np.concatenate([unit(arrays["P2_spatial"]), unit(arrays["P3_spatial"])], axis=1))
    temporal = unit(arrays["P5_temporal"])
    expected = {"spatial": spatial, "temporal": temporal, "both": unit(np.concatenate([spatial, temporal], axis=1))}

    for by, vectors in expected.items():
        found = SearchSpace(table, by).nearest(vectors[[3, 7]].astype("float32"), 5)

        cosines = vectors[[3, 7]] @ vectors.T
        assert found.rows.tolist() == np.argsort(-cosines, axis=1)[:, :5].tolist()
        assert found.rows[:, 0].tolist() == [3, 7]
        np.testing.assert_allclose(found.cosines, -np.sort(-cosines, axis=1)[:, :5], atol=1e-6)


def test_among_equals_the_first_comes_first_and_no_more_are_found_than_there_are(tmp_path):
    table = write(tmp_path / "t.parquet", {"clip": np.float32([[1, 0], [0, 1], [1, 0], [0, 0]])})

    found = SearchSpace(table, "both").nearest(np.float32([[1, 0]]), 9)

    assert found.rows.tolist() == [[0, 2, 1, 3]] and found.cosines.tolist() == [[1, 1, 0, 0]]


def test_a_table_without_tasks_is_searched_by_all_its_vectors(tmp_path):
    table = write(tmp_path / "t.parquet", {"clip": np.eye(3, dtype="float32")})

    with pytest.raises(ConfigError, match=r"--by spatial: .*t\.parquet can be searched by both\."):
        SearchSpace(table, "spatial")


def test_an_index_finds_almost_all_of_the_nearest_and_is_built_once(tmp_path, monkeypatch):
    file = tmp_path / "t.parquet"
    videos = SearchSpace(write(file, embeddings(3000)), "both")
    reported = []

    built = ApproximateIndex(videos, file, lambda *progress: reported.append(progress))
    monkeypatch.setattr(approximate, "_build", lambda *_: pytest.fail("built again"))
    opened = ApproximateIndex(videos, file)

    exact = videos.nearest(videos.vectors[:100], 10)
    for index in (built, opened):
        found = index.nearest(videos.vectors[:100], 10)
        shared = [len(set(a) & set(b)) / 10 for a, b in zip(found.rows, exact.rows, strict=True)]
        assert np.mean(shared) > 0.95
        np.testing.assert_allclose(found.cosines[:, 0], 1.0, atol=2e-3)  # half precision
    assert reported[-1] == (3000, 3000) and built.file.name.startswith("t.both.")
    assert sorted(path.name for path in tmp_path.glob("*.usearch*")) == [built.file.name]


def test_other_vectors_have_another_index_and_a_damaged_one_is_named(tmp_path):
    file = tmp_path / "t.parquet"
    first = ApproximateIndex(SearchSpace(write(file, embeddings(50)), "both"), file)
    second = SearchSpace(write(file, embeddings(50, seed=1)), "both")
    name = ApproximateIndex(second, file).file.name
    assert name != first.file.name

    other = ApproximateIndex(SearchSpace(write(file, embeddings(20)), "both"), file)
    for damaged in (other.file.read_bytes(), b"", b"text", bytes(200)):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(RunError, match=r"is damaged\. Delete it"):
            ApproximateIndex(second, file)


def test_groups_are_chains_of_near_videos_and_keep_groups_of_the_set(tmp_path):
    angles = np.deg2rad([0, 90, 5, 10, 180, 183, 270])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype("float32")
    groups = [None, "a", None, None, None, "a", "a"]
    labels = ["x", "y", "x", "x", "y", "y", "y"]
    paths = [str(tmp_path / f"{number}.mp4") for number in range(7)]
    for path in paths:
        Path(path).touch()
    table = write(tmp_path / "t.parquet", {"clip": vectors}, group=groups, label=labels, path=paths)
    videos = SearchSpace(table, "both")

    found = near_duplicates(videos, np.cos(np.deg2rad(6)))

    assert sorted(found) == [[0, 2, 3], [4, 5]]
    (tmp_path / "manifest.csv").write_text(manifest_of(table.records, found))
    read = read_manifest(tmp_path / "manifest.csv")
    assert [record.group for record in read] == [
        "00000.mp4", "a", "00000.mp4", "00000.mp4", "a", "a", "a",
    ]  # fmt: skip
    assert [record.label for record in read] == labels and [record.path for record in read] == paths
    assert near_duplicates(videos, 1.01) == []


@pytest.mark.parametrize("block", [2**24, 7])
def test_equal_vectors_are_duplicates_at_any_cosine_and_in_any_block(tmp_path, monkeypatch, block):
    monkeypatch.setattr(space, "_BLOCK", block)
    vectors = np.random.default_rng(0).normal(size=(40, 33)).astype("float32")
    table = write(tmp_path / "t.parquet", {"clip": np.concatenate([vectors, vectors[::-1]])})

    found = near_duplicates(SearchSpace(table, "both"), 1.0)

    assert sorted(found) == [[row, 79 - row] for row in range(40)]
