"""Video sets for evaluations, and a run with random weights, because these tests need no training."""

import pytest

from hdc_keras import Experiment
from hdc_keras.data.synthetic import MovingShapes, render_video, write_video
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.models import build_model

CLASSES = {"Archery": "right", "Basketball": "circling"}
BROKEN = ("17.mp4", "25.mp4", "36.mp4")
_SHAPES = MovingShapes(frames=12, size=32)


def experiment_on(path, **evaluation):
    return Experiment.model_validate(
        {
            "data": {"path": str(path), "frames": 4, "stride": 1, "decode_size": [20, 24], "max_failed_share": 0.3},
            "views": {"size": 16},
            "model": {"backbone": "r3d_tiny"},
            "evaluate": {"clips": 2, "batch_size": 8, "knn_neighbours": 3, "recall_at": [1, 5], **evaluation},
        }
    )


@pytest.fixture(scope="session")
def ucf101(once):
    """18 videos in the layout of UCF101: two classes of three groups; each group is the test set of one split."""
    return once("ucf101", _write_ucf101)


def _write_ucf101(folder):
    lists = folder / "ucfTrainTestlist"
    lists.mkdir()
    groups = {}
    for label, motion in CLASSES.items():
        (folder / "UCF-101" / label).mkdir(parents=True)
        for group in (1, 2, 3):
            for clip in (1, 2, 3):
                name = f"{label}/v_{label}_g{group:02d}_c{clip:02d}.avi"
                write_video(folder / "UCF-101" / name, render_video(_SHAPES, "dots", motion, 3 * group + clip))
                groups[name] = group
    (lists / "classInd.txt").write_text("1 Archery\n2 Basketball\n")
    numbers = {label: number for number, label in enumerate(CLASSES, 1)}
    for split in (1, 2, 3):
        train = [f"{name} {numbers[name.split('/')[0]]}" for name, group in groups.items() if group != split]
        test = [name for name, group in groups.items() if group == split]
        (lists / f"trainlist0{split}.txt").write_text("\n".join(train))
        (lists / f"testlist0{split}.txt").write_text("\n".join(test))


@pytest.fixture(scope="session")
def partly_broken(once):
    """A manifest of 37 videos. Three of the test videos cannot be decoded."""
    return once("partly-broken", _write_partly_broken)


def _write_partly_broken(folder):
    rows = []
    for number in range(37):
        label, split = list(CLASSES)[number % 2], "train" if number < 15 else "test"
        file = folder / f"{number:02d}.mp4"
        if file.name in BROKEN:
            file.write_text("not a video")
        else:
            write_video(file, render_video(_SHAPES, "dots", CLASSES[label], number))
        rows.append(f"{file.name},{label},{split}")
    (folder / "manifest.csv").write_text("path,label,split\n" + "\n".join(rows))


@pytest.fixture(scope="module")
def run(ucf101, tmp_path_factory):
    """A run with one checkpoint, with random weights."""
    experiment = experiment_on(ucf101)
    directory = RunDirectory(tmp_path_factory.mktemp("run") / "run")
    directory.create(experiment)
    directory.checkpoints.save(build_model(experiment), 1, 1)
    return directory
