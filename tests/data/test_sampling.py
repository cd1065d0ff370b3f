import numpy as np
import pytest

from hdc_keras.data.sampling import WindowSpec, epoch_order, evenly_spaced_clips, sample_windows, video_keys
from hdc_keras.report.thumbnails import middle_frames

SPEC = WindowSpec(frames=8, stride=2, min_gap=10, strides=(1, 2, 3))


def windows_of(seed, epoch, video_id, frame_count, spec):
    """The two windows of one video."""
    return sample_windows(seed, epoch, video_keys([video_id]), np.array([frame_count]), spec)[0]


def test_the_same_inputs_give_the_same_frames():
    first = windows_of(1, 2, "a.mp4", 100, SPEC)

    np.testing.assert_array_equal(first, windows_of(1, 2, "a.mp4", 100, SPEC))


@pytest.mark.parametrize("other", [(2, 2, "a.mp4"), (1, 3, "a.mp4"), (1, 2, "b.mp4")])
def test_seed_epoch_and_video_each_change_the_frames(other):
    assert not np.array_equal(windows_of(1, 2, "a.mp4", 1000, SPEC), windows_of(*other, 1000, SPEC))


@pytest.mark.parametrize("frame_count", [1, 5, 8, 15, 16, 40, 1000])
def test_windows_are_inside_the_video_and_keep_their_strides(frame_count):
    for epoch in range(50):
        anchor, second = windows_of(0, epoch, "v", frame_count, SPEC)
        assert anchor.min() >= 0 and second.min() >= 0
        assert anchor.max() < frame_count and second.max() < frame_count
        assert (np.diff(anchor) % frame_count == 2 % frame_count).all()
        assert len(set(np.diff(second) % frame_count)) == 1


def test_starts_are_at_least_the_gap_apart_if_the_video_is_long_enough():
    starts = np.array([windows_of(0, epoch, "v", 60, SPEC)[:, 0] for epoch in range(300)])

    assert np.abs(starts[:, 0] - starts[:, 1]).min() >= 10


def test_a_video_too_short_for_the_gap_gives_the_farthest_window():
    spec = WindowSpec(frames=8, min_gap=100)

    for epoch in range(20):
        anchor, second = windows_of(0, epoch, "v", 12, spec)
        assert abs(anchor[0] - second[0]) == max(anchor[0], 4 - anchor[0])


def test_the_windows_of_a_video_do_not_depend_on_the_other_videos_in_the_call():
    names, counts = [f"{number}.mp4" for number in range(200)], np.arange(1, 201)

    together = sample_windows(3, 5, video_keys(names), counts, SPEC)

    for name, count, windows in zip(names, counts, together, strict=True):
        np.testing.assert_array_equal(windows, windows_of(3, 5, name, count, SPEC))


def test_the_second_start_is_drawn_uniformly_from_those_with_the_required_gap():
    spec = WindowSpec(frames=8, min_gap=3)
    keys = video_keys(map(str, range(70_000)))

    starts = sample_windows(0, 0, keys, np.full(len(keys), 14), spec)[:, :, 0]

    for anchor in range(7):
        # By definition: every start at a distance of at least 3. With 7 starts, every anchor has at least one.
        allowed = {start for start in range(7) if abs(start - anchor) >= 3}
        found, counts = np.unique(starts[starts[:, 0] == anchor, 1], return_counts=True)
        assert set(found) == allowed
        # About 10,000 draws. The tolerance is 6 standard deviations of a binomial count plus 6 of the number of draws.
        expected = 10_000 / len(allowed)
        assert np.abs(counts - expected).max() < 6 * np.sqrt(expected) + 6 * np.sqrt(10_000) / len(allowed)


def test_draws_of_neighbouring_seeds_epochs_and_videos_are_uncorrelated():
    keys = video_keys(map(str, range(20_000)))
    spec, counts = WindowSpec(frames=8), np.full(len(keys), 1007)
    draws = [sample_windows(seed, epoch, keys, counts, spec)[:, :, 0] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    columns = [column for draw in draws for column in draw.T] + [np.roll(draws[0][:, 0], 1)]

    correlations = np.corrcoef(columns)

    assert np.abs(correlations - np.eye(len(columns))).max() < 6 / np.sqrt(len(keys))


def test_every_start_is_drawn():
    starts = {int(windows_of(0, epoch, "v", 20, WindowSpec(frames=8))[0, 0]) for epoch in range(400)}

    assert starts == set(range(13))


def test_the_second_window_can_run_backwards():
    spec = WindowSpec(frames=8, reverse_probability=1.0)
    anchor, second = windows_of(0, 0, "v", 100, spec)

    assert (np.diff(anchor) == 1).all() and (np.diff(second) == -1).all()


def test_evenly_spaced_clips_span_the_video():
    clips = evenly_spaced_clips(100, clips=10, frames=8, stride=2)

    assert clips.shape == (10, 8)
    assert clips[0, 0] == 0 and clips[-1, -1] == 99
    assert np.ptp(np.diff(clips[:, 0])) <= 1


@pytest.mark.parametrize(
    ("count", "frames", "stride", "expected"),
    [
        (100, 4, 2, [46, 48, 50, 52]),  # frames 46 to 52: 46 before them, 47 after them
        (9, 4, 1, [2, 3, 4, 5]),
        (4, 4, 1, [0, 1, 2, 3]),
        (3, 5, 1, [0, 1, 2, 0, 1]),
    ],
)
def test_a_single_clip_is_the_middle_one(count, frames, stride, expected):
    np.testing.assert_array_equal(evenly_spaced_clips(count, 1, frames, stride), [expected])
    if count >= frames:  # thumbnails show the same clip
        shown = middle_frames(count, frames, stride)
        assert (shown[0], shown[-1]) == (expected[0], expected[-1])


def test_short_videos_are_looped():
    np.testing.assert_array_equal(
        evenly_spaced_clips(3, clips=2, frames=5, stride=1), [[0, 1, 2, 0, 1], [2, 0, 1, 2, 0]]
    )


def test_each_epoch_visits_every_video_once_in_a_different_order():
    first, second = epoch_order(0, 0, 50), epoch_order(0, 1, 50)

    assert sorted(first) == sorted(second) == list(range(50))
    assert not np.array_equal(first, second)
