import numpy as np
import pytest

from hdc_keras.data.sampling import WindowSpec, epoch_order, evenly_spaced_clips, sample_windows

SPEC = WindowSpec(frames=8, stride=2, min_gap=10, strides=(1, 2, 3))


def test_the_same_inputs_give_the_same_frames():
    first = sample_windows(1, 2, "a.mp4", 100, SPEC)

    np.testing.assert_array_equal(first, sample_windows(1, 2, "a.mp4", 100, SPEC))


@pytest.mark.parametrize("other", [(2, 2, "a.mp4"), (1, 3, "a.mp4"), (1, 2, "b.mp4")])
def test_seed_epoch_and_video_each_change_the_frames(other):
    assert not np.array_equal(sample_windows(1, 2, "a.mp4", 1000, SPEC), sample_windows(*other, 1000, SPEC))


@pytest.mark.parametrize("frame_count", [1, 5, 8, 15, 16, 40, 1000])
def test_windows_lie_in_the_video_and_keep_their_strides(frame_count):
    for epoch in range(50):
        anchor, second = sample_windows(0, epoch, "v", frame_count, SPEC)
        assert anchor.min() >= 0 and second.min() >= 0
        assert anchor.max() < frame_count and second.max() < frame_count
        assert (np.diff(anchor) % frame_count == 2 % frame_count).all()
        assert len(set(np.diff(second) % frame_count)) == 1


def test_starts_are_at_least_the_gap_apart_where_the_video_is_long_enough():
    starts = np.array([sample_windows(0, epoch, "v", 60, SPEC)[:, 0] for epoch in range(300)])

    assert np.abs(starts[:, 0] - starts[:, 1]).min() >= 10


def test_a_video_too_short_for_the_gap_gives_the_farthest_window():
    spec = WindowSpec(frames=8, min_gap=100)

    for epoch in range(20):
        anchor, second = sample_windows(0, epoch, "v", 12, spec)
        assert abs(anchor[0] - second[0]) == max(anchor[0], 4 - anchor[0])


def test_every_start_is_drawn():
    starts = {int(sample_windows(0, epoch, "v", 20, WindowSpec(frames=8))[0, 0]) for epoch in range(400)}

    assert starts == set(range(13))


def test_the_second_window_can_run_backwards():
    spec = WindowSpec(frames=8, reverse_probability=1.0)
    anchor, second = sample_windows(0, 0, "v", 100, spec)

    assert (np.diff(anchor) == 1).all() and (np.diff(second) == -1).all()


def test_evenly_spaced_clips_span_the_video():
    clips = evenly_spaced_clips(100, clips=10, frames=8, stride=2)

    assert clips.shape == (10, 8)
    assert clips[0, 0] == 0 and clips[-1, -1] == 99
    assert np.ptp(np.diff(clips[:, 0])) <= 1


def test_short_videos_are_looped():
    np.testing.assert_array_equal(
        evenly_spaced_clips(3, clips=2, frames=5, stride=1), [[0, 1, 2, 0, 1], [2, 0, 1, 2, 0]]
    )


def test_each_epoch_visits_every_video_once_in_its_own_order():
    first, second = epoch_order(0, 0, 50), epoch_order(0, 1, 50)

    assert sorted(first) == sorted(second) == list(range(50))
    assert not np.array_equal(first, second)
