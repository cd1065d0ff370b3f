"""Extracted features, kept in files so that no video is encoded twice by the same network."""

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.data.records import VideoRecord
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.video_features import Arrays, VideoFeatures
from hdc_keras.files import replacing_stream

# Increased whenever the same network would give other features for the same videos.
_VERSION = 1


class FeatureStore:
    """A folder of features, each set under a digest of everything it depends on: weights, videos and settings.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def find(
        self,
        encoder: ClipEncoder,
        records: Sequence[VideoRecord],
        experiment: Experiment,
        with_views: bool = False,
    ) -> VideoFeatures | None:
        """Features that were kept for the same videos, in any order.

        Args:
            encoder: the frozen network.
            records: the videos.
            experiment: its `data` and `evaluate` sections say how clips are made.
            with_views: whether features of single views are needed too.

        Returns:
            The features in the order of `records`, or `None` where there are none or they cannot be read.
        """
        digest = _digest(encoder, records, experiment)
        for has_views in (True,) if with_views else (False, True):
            features = _read(self._file(digest, has_views), records)
            if features:
                return features
        return None

    def keep(
        self,
        encoder: ClipEncoder,
        records: Sequence[VideoRecord],
        experiment: Experiment,
        features: VideoFeatures,
        with_views: bool,
    ) -> None:
        """Keep features for `find`, which is given the same arguments.

        Raises:
            OSError: the file cannot be written.
        """
        note = {"videos": [record.video_id for record in features.records], "failed": features.failed}
        arrays = {f"mean/{name}": values for name, values in features.arrays.items()}
        arrays |= {f"view/{name}": values for name, values in features.views.items()}
        with replacing_stream(self._file(_digest(encoder, records, experiment), with_views)) as stream:
            np.savez(stream, allow_pickle=False, note=np.array(json.dumps(note)), **arrays)

    def _file(self, digest: str, has_views: bool) -> Path:
        return self.folder / f"{digest}{'-views' if has_views else ''}.npz"


def digest_of_weights(model: keras.Model) -> str:
    """SHA-256 of a network's weights, independent of the file they are in."""
    found = hashlib.sha256()
    for variable in model.weights:
        found.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable.value)).tobytes())
    return found.hexdigest()


def _digest(encoder: ClipEncoder, records: Sequence[VideoRecord], experiment: Experiment) -> str:
    data, settings = experiment.data, experiment.evaluate
    made = [data.frames, data.stride, data.decode_size, data.decoder, settings.clips, encoder.crops, encoder.view_size]
    names = [encoder.pyramid.dtype_policy.name, list(encoder.levels), list(encoder.heads), keras.backend.backend()]
    parts = [_VERSION, digest_of_weights(encoder), made, names]
    videos = [_identity(record) for record in sorted(records, key=lambda record: record.video_id)]
    return hashlib.sha256(json.dumps([*parts, videos]).encode()).hexdigest()


def _identity(record: VideoRecord) -> list[str | int]:
    """What distinguishes a video from another version of it under the same name."""
    if record.stored:
        return [record.video_id, record.stored.shard, record.stored.offset, record.stored.size]
    try:
        status = os.stat(record.path)  # noqa: PTH116
    except OSError:  # it will fail to decode, and be counted
        return [record.video_id, record.path]
    return [record.video_id, record.path, status.st_size, status.st_mtime_ns]


def _read(file: Path, records: Sequence[VideoRecord]) -> VideoFeatures | None:
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
