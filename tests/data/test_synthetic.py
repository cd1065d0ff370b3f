import csv
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from hdc_keras.data.decoding import count_frames, decode
from hdc_keras.data.synthetic import APPEARANCES, MOTIONS, MovingShapes, ensure_moving_shapes, render_video, write_video
from hdc_keras.errors import RunError

SPEC = MovingShapes(1, 1, frames=24, size=32)
TINY = MovingShapes(1, 1, frames=2, size=16)


def test_the_manifest_pairs_every_appearance_with_every_motion(shapes_folder):
    with (shapes_folder / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))

    pairs = Counter((row["label_appearance"], row["label_motion"], row["split"]) for row in rows)
    assert len(pairs) == 2 * len(APPEARANCES) * len(MOTIONS) and set(pairs.values()) == {1}


def test_videos_are_real_files_that_decode_to_what_was_rendered(shapes_folder):
    path = str(shapes_folder / "checks-left-000.mp4")

    decoded = decode(path, np.arange(count_frames(path))).astype(float)

    rendered = render_video(MovingShapes(1, 1), "checks", "left", 0)
    assert decoded.shape == rendered.shape
    assert np.abs(decoded - rendered).mean() < 8  # H.264 halves the resolution of colour


def test_encoding_is_deterministic(tmp_path):
    # x264's AVX-512 code encodes a few of a hundred videos differently each time, so one video would not do.
    def encoded(name):
        for number in range(60):
            write_video(tmp_path / f"{name}{number}.mp4", videos[number])
        return [(tmp_path / f"{name}{number}.mp4").read_bytes() for number in range(60)]

    videos = [render_video(MovingShapes(), "stripes", "left", number) for number in range(60)]

    assert encoded("first") == encoded("second")


def test_rendering_is_deterministic():
    first, again = (render_video(SPEC, "clouds", "up", 3) for _ in range(2))

    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, render_video(SPEC, "clouds", "up", 4))


def moving_centre(frames):
    """Centre of the pixels that differ from the background, as an angle on a circle, because the sprite wraps around.

    Returns complex numbers for each axis and frame.
    """
    difference = np.abs(frames.astype(float) - np.median(frames, axis=0)).sum(axis=-1)
    phase = np.exp(2j * np.pi * np.arange(frames.shape[1]) / frames.shape[1])
    return (difference.sum(axis=1) * phase).sum(axis=1), (difference.sum(axis=2) * phase).sum(axis=1)


@pytest.mark.parametrize(("motion", "x", "y"), [("right", 1, 0), ("left", -1, 0), ("down", 0, 1), ("up", 0, -1)])
def test_the_sprite_moves_in_the_direction_of_its_label(motion, x, y):
    along_x, along_y = moving_centre(render_video(MovingShapes(frames=40), "clouds", motion, 1))

    for centre, direction in ((along_x, x), (along_y, y)):
        turned = np.angle(centre[1:] / centre[:-1]).sum()
        assert (turned * direction > 2) if direction else abs(turned) < 1


def test_the_same_specification_is_rendered_once(cache_folder):
    manifest = ensure_moving_shapes(SPEC)
    before = manifest.stat().st_mtime_ns

    assert ensure_moving_shapes(SPEC) == manifest
    assert manifest.stat().st_mtime_ns == before
    assert not list(cache_folder.glob(f".{manifest.parent.name}*"))


def test_a_process_that_finishes_second_uses_the_existing_set(tmp_path, monkeypatch):
    monkeypatch.setenv("HDC_KERAS_CACHE", str(tmp_path))
    first = []

    def overtake(done, total):
        if not first:
            first.append(None)
            manifest = ensure_moving_shapes(TINY)
            first[0] = manifest, manifest.stat().st_ino

    manifest = ensure_moving_shapes(TINY, overtake)

    assert [(manifest, manifest.stat().st_ino)] == first
    assert list(tmp_path.iterdir()) == [manifest.parent] and len(list(manifest.parent.glob("*.mp4"))) == 72


def test_a_folder_in_the_way_is_an_error_and_is_not_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("HDC_KERAS_CACHE", str(tmp_path))
    folder = ensure_moving_shapes(TINY).parent
    (folder / "manifest.csv").unlink()
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(RunError, match="not empty"):
        ensure_moving_shapes(TINY)

    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_rendering_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HDC_KERAS_CACHE", str(tmp_path))

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_moving_shapes(TINY, interrupt)

    assert not list(tmp_path.iterdir())


def test_two_processes_that_render_at_once_get_the_same_complete_set(tmp_path, monkeypatch):
    code = "from hdc_keras.data.synthetic import *;print(ensure_moving_shapes(MovingShapes(1, 1, frames=8, size=16)))"
    monkeypatch.setenv("HDC_KERAS_CACHE", str(tmp_path))
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]

    answers = {process.communicate(timeout=120)[0] for process in processes}

    assert [process.returncode for process in processes] == [0, 0] and len(answers) == 1
    assert len(list(tmp_path.glob("*/*.mp4"))) == 72 and len(list(tmp_path.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HDC_KERAS_CACHE", str(tmp_path / "file" / "cache"))

    with pytest.raises(RunError, match=r"file/cache cannot be written \(Not a directory\).*set HDC_KERAS_CACHE"):
        ensure_moving_shapes(MovingShapes(1, 1))
