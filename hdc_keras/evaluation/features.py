"""Frozen features of a set of videos, extracted once."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.data.loading import DecodeFailures, FrameStore, clip_batches
from hdc_keras.data.records import VideoRecord
from hdc_keras.encoder import ClipEncoder
from hdc_keras.errors import DataError

Progress = Callable[[int, int], None]
Arrays = dict[str, np.ndarray]

# Changed whenever the same network would give other features for the same videos.
_CACHE_VERSION = 1


@dataclass(frozen=True)
class VideoFeatures:
    """Features of the videos that decoded, in the order of `records`.

    Attributes:
        records: the videos that decoded.
        arrays: (videos, channels) float32 by name: levels, `{level}_{task}` and `embedding`, each the mean over views.
        asked: number of videos asked for.
        failed: reason by path of every video that did not decode.
        views: (videos, views, channels) by name, where they were kept.
    """

    records: list[VideoRecord]
    arrays: Arrays
    asked: int
    failed: dict[str, str]
    views: Arrays = field(default_factory=dict)

    def of_split(self, split: str) -> "VideoFeatures":
        """The videos of one split; the counts stay those of the whole set."""
        return self.select([record for record in self.records if record.split == split])

    def select(self, records: Sequence[VideoRecord]) -> "VideoFeatures":
        """The features of those of `records` that decoded, known by their ids; splits and labels are theirs."""
        rows_by_id = {record.video_id: row for row, record in enumerate(self.records)}
        kept = [record for record in records if record.video_id in rows_by_id]
        rows = [rows_by_id[record.video_id] for record in kept]
        arrays, views = ({name: a[rows] for name, a in arrays.items()} for arrays in (self.arrays, self.views))
        return VideoFeatures(kept, arrays, self.asked, self.failed, views)


def extract_features(
    encoder: ClipEncoder,
    records: Sequence[VideoRecord],
    experiment: Experiment,
    store: FrameStore,
    progress: Progress | None = None,
    cache: Path | None = None,
    keep_views: bool = False,
) -> VideoFeatures:
    """Encode `evaluate.clips` evenly spaced clips of every video, `encoder.crops` crops of each, and average them.

    Args:
        encoder: the frozen network.
        records: videos; none is dropped, and each that fails is named in the result.
        experiment: its `data` and `evaluate` sections say how clips are made.
        store: decodes them.
        progress: called with (videos done, videos in all).
        cache: folder where features are kept under a digest of weights, videos and settings; none when `None`.
        keep_views: whether the features of every single view are kept too.

    Raises:
        DataError: too many videos cannot be decoded, or counts do not add up.
    """
    known = kept_features(encoder, records, experiment, cache, keep_views) if cache else None
    if known:
        if progress:
            progress(len(records), len(records))
        return known
    failures = DecodeFailures(len(records), experiment.data.max_failed_share)
    kept: list[VideoRecord] = []
    means: dict[str, list[np.ndarray]] = {}
    views: dict[str, list[np.ndarray]] = {}
    for batch, outputs in encoded_batches(
        encoder.predict_on_batch, encoder.crops, records, experiment, store, failures, progress
    ):
        kept += batch
        for name, values in outputs.items():
            means.setdefault(name, []).append(values.mean(axis=1))
            if keep_views:
                views.setdefault(name, []).append(values)
    arrays = {name: np.concatenate(values) for name, values in means.items()}
    kept_views = {name: np.concatenate(values) for name, values in views.items()}
    features = VideoFeatures(kept, arrays, len(records), dict(failures.reasons), kept_views)
    if cache:
        _write_cache(_cache_file(cache, _digest(encoder, records, experiment), keep_views), features)
    return features


def kept_features(
    encoder: ClipEncoder,
    records: Sequence[VideoRecord],
    experiment: Experiment,
    cache: Path,
    with_views: bool = False,
) -> VideoFeatures | None:
    """What `extract_features` has kept of the same videos, in whatever order they were; `None` where it has not.

    Args:
        encoder: as in `extract_features`.
        records: as in `extract_features`.
        experiment: as in `extract_features`.
        cache: as in `extract_features`.
        with_views: whether the features of every single view are wanted too.
    """
    digest = _digest(encoder, records, experiment)
    for has_views in (True,) if with_views else (False, True):
        known = _read_cache(_cache_file(cache, digest, has_views), records)
        if known:
            return known
    return None


def encoded_batches(
    encode: Callable[[np.ndarray], Arrays],
    crops: int,
    records: Sequence[VideoRecord],
    experiment: Experiment,
    store: FrameStore,
    failures: DecodeFailures,
    progress: Progress | None = None,
) -> Iterator[tuple[list[VideoRecord], Arrays]]:
    """Every video once, through a network: those of a batch that decoded, and what it gives for each of their views.

    Args:
        encode: clips (batch, time, height, width, 3) uint8 -> (crops * batch, ...) by name.
        crops: how many crops of a clip it makes, one after the other.
        records: as in `extract_features`.
        experiment: as in `extract_features`.
        store: as in `extract_features`.
        failures: notes the videos that do not decode.
        progress: as in `extract_features`.

    Returns:
        An iterator of videos and of (videos, views, ...) arrays by name.

    Raises:
        DataError: too many videos cannot be decoded, or counts do not add up.
    """
    settings = experiment.evaluate
    reading = clip_batches(
        records,
        store,
        failures,
        clips=settings.clips,
        frames=experiment.data.frames,
        stride=experiment.data.stride,
        batch_size=settings.batch_size,
        workers=experiment.data.workers,
    )
    done = encoded = 0
    for batch in reading:
        if batch.records:
            # Always a full batch, so that no backend compiles for the smaller ones.
            clips = np.resize(batch.clips, (settings.batch_size, *batch.clips.shape[1:]))
            outputs = {}
            for name, values in encode(clips.reshape(-1, *clips.shape[2:])).items():
                by_crop = np.asarray(values).reshape(crops, *clips.shape[:2], -1)
                per_video = np.moveaxis(by_crop, 0, 2).reshape(clips.shape[0], clips.shape[1] * crops, -1)
                outputs[name] = per_video[: len(batch.records)]
            yield batch.records, outputs
        encoded += len(batch.records)
        done += batch.asked
        if progress:
            progress(done, len(records))
    if encoded + len(failures.reasons) != len(records):
        raise DataError(
            f"{len(records)} videos were asked for, but {encoded} were evaluated and {len(failures.reasons)} failed"
        )


def joined(train: VideoFeatures, test: VideoFeatures, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Several arrays side by side, each channel standardised by the training videos.

    Features after a ReLU are all positive and so all alike by cosine; taking the mean away lets them differ.

    Returns:
        (training videos, channels), (test videos, channels) float32.
    """
    sides = []
    for features in (train, test):
        scaled = []
        for name in names:
            mean, deviation = train.arrays[name].mean(axis=0), train.arrays[name].std(axis=0)
            scaled.append((features.arrays[name] - mean) / (deviation + 1e-6))
        sides.append(np.concatenate(scaled, axis=1).astype(np.float32))
    return sides[0], sides[1]


def digest_of_weights(model: keras.Model) -> str:
    """SHA-256 of a network's weights, whatever file they are in."""
    found = hashlib.sha256()
    for variable in model.weights:
        found.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable.value)).tobytes())
    return found.hexdigest()


def _cache_file(cache: Path, digest: str, has_views: bool) -> Path:
    return cache / f"{digest}{'-views' if has_views else ''}.npz"


def _digest(encoder: ClipEncoder, records: Sequence[VideoRecord], experiment: Experiment) -> str:
    data, settings = experiment.data, experiment.evaluate
    made = [data.frames, data.stride, data.decode_size, data.decoder, settings.clips, encoder.crops, encoder.view_size]
    names = [encoder.pyramid.dtype_policy.name, list(encoder.levels), list(encoder.heads), keras.backend.backend()]
    parts = [_CACHE_VERSION, digest_of_weights(encoder), made, names]
    videos = [_identity(record) for record in sorted(records, key=lambda record: record.video_id)]
    return hashlib.sha256(json.dumps([*parts, videos]).encode()).hexdigest()


def _identity(record: VideoRecord) -> list[str | int]:
    """What tells a video from another one of that name."""
    if record.stored:
        return [record.video_id, record.stored.shard, record.stored.offset, record.stored.size]
    try:
        status = os.stat(record.path)  # noqa: PTH116
    except OSError:  # it will fail to decode, and be counted
        return [record.video_id, record.path]
    return [record.video_id, record.path, status.st_size, status.st_mtime_ns]


def _write_cache(file: Path, features: VideoFeatures) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.npz")
    note = {"videos": [record.video_id for record in features.records], "failed": features.failed}
    arrays = {f"mean/{name}": values for name, values in features.arrays.items()}
    arrays |= {f"view/{name}": values for name, values in features.views.items()}
    try:
        with temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, note=np.array(json.dumps(note)), **arrays)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _read_cache(file: Path, records: Sequence[VideoRecord]) -> VideoFeatures | None:
    """What was kept for the same videos; `None` where nothing was, or it cannot be read and is made anew."""
    try:
        with np.load(file) as stored:
            note = json.loads(str(stored["note"]))
            groups: dict[str, Arrays] = {"mean": {}, "view": {}}
            for key in stored.files:
                group, _, name = key.partition("/")
                if name:
                    groups[group][name] = stored[key]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    by_id = {record.video_id: record for record in records}
    kept = [by_id[video_id] for video_id in note["videos"]]
    return VideoFeatures(kept, groups["mean"], len(records), note["failed"], groups["view"]).select(records)
