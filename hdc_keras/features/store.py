"""A cache of extracted features on disk, so no video is encoded twice by the same network."""

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
from hdc_keras.errors import RunError
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.video_features import Arrays, VideoFeatures
from hdc_keras.files import replacing_stream

# Increase this whenever a code change alters the features of the same network and videos.
_VERSION = 2


class FeatureStore:
    """A folder of extracted features. A file's name is a digest of the weights, videos and settings that it depends on.

    Args:
        folder: where the files are.
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
        """Look up the features of a set of videos, whatever the order they were extracted in.

        Args:
            encoder: the frozen network.
            records: the videos.
            experiment: its `data` and `evaluate` sections define the clips.
            with_views: whether features of single views are needed too.

        Returns:
            The features in the order of `records`, or `None` if they are not cached or cannot be read.
        """
        digest = _digest(encoder, records, experiment)
        # A file with views serves both kinds of request.
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
        """Save features. `find` returns them when called with the same arguments.

        Raises:
            RunError: the file cannot be written.
        """
        note = {"videos": [record.video_id for record in features.records], "failed": features.failed}
        arrays = {f"mean/{name}": values for name, values in features.arrays.items()}
        arrays |= {f"view/{name}": values for name, values in features.views.items()}
        file = self._file(_digest(encoder, records, experiment), with_views)
        try:
            with replacing_stream(file) as stream:
                np.savez(stream, allow_pickle=False, note=np.array(json.dumps(note)), **arrays)
        except OSError as error:
            raise RunError(
                f"{file} cannot be written ({error.strerror or error}). Free some space or make the folder writable, "
                "then run the same command again."
            ) from error

    def _file(self, digest: str, has_views: bool) -> Path:
        return self.folder / f"{digest}{'-views' if has_views else ''}.npz"


def digest_of_weights(model: keras.Model) -> str:
    """SHA-256 of a network's weights, whatever file they were loaded from."""
    digest = hashlib.sha256()
    for variable in model.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable.value)).tobytes())
    return digest.hexdigest()


def _digest(encoder: ClipEncoder, records: Sequence[VideoRecord], experiment: Experiment) -> str:
    data, settings = experiment.data, experiment.evaluate
    clips = [data.frames, data.stride, data.decode_size, data.decoder, settings.clips, encoder.crops, encoder.view_size]
    network = [encoder.pyramid.dtype_policy.name, list(encoder.levels), list(encoder.heads), keras.backend.backend()]
    parts = [_VERSION, digest_of_weights(encoder), clips, network]
    videos = [_identity(record) for record in sorted(records, key=lambda record: record.video_id)]
    return hashlib.sha256(json.dumps([*parts, videos]).encode()).hexdigest()


def _identity(record: VideoRecord) -> list[str | int]:
    """The id of a video, and facts that change when its file is replaced by another one of the same name."""
    if record.stored:
        return [record.video_id, record.stored.shard, record.stored.offset, record.stored.size]
    try:
        status = os.stat(record.path)  # noqa: PTH116
    except OSError:  # extraction will count it as failed
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
