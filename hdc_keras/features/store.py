"""The store of extracted features on disk: found by network and by video, so no network encodes a video twice.

Every network, with the clips that it is shown, has a folder. It holds parts: files with the features of some videos. A
part is never changed, and its name is a digest of its videos, so several processes can write to one store.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.data.members import file_of
from hdc_keras.data.records import VideoRecord
from hdc_keras.data.remote import is_remote
from hdc_keras.errors import RunError, VideoDecodeError
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.video_features import Arrays, VideoFeatures
from hdc_keras.files import replacing_stream

# Increase this whenever a code change alters the features of the same network and videos.
_VERSION = 4
_SUFFIX = ".npz"
_WITH_VIEWS = "-views"
# Where the features of a video are: the file, and the row in its arrays.
_Place = tuple[Path, int]


class FeatureStore:
    """The features that one network extracted from evenly spaced clips.

    Args:
        folder: the store of all networks, such as `features/` of a run. It is created when the first part is written.
        encoder: the frozen network.
        experiment: its `data` and `evaluate` sections define the clips.
        needs_views: whether the features of single views are needed, not only their means. Parts without views are then
            ignored.
        keeps_views: whether new parts hold the features of single views too; they do if these are needed.
    """

    def __init__(
        self,
        folder: Path,
        encoder: ClipEncoder,
        experiment: Experiment,
        needs_views: bool = False,
        keeps_views: bool = False,
    ):
        self.folder = folder / _digest(_made_from(encoder, experiment))[:16]
        self.needs_views = needs_views
        self.keeps_views = keeps_views or needs_views
        self._keys: dict[tuple[str, str], str] = {}
        self._places: dict[str, _Place] = {}
        self._failed: dict[str, VideoDecodeError] = {}
        for file in sorted(self.folder.glob(f"*{_WITH_VIEWS if needs_views else ''}{_SUFFIX}")):
            self._add(file)

    def has(self, record: VideoRecord) -> bool:
        """Whether the features of a video are in the store, or the reason why it cannot be decoded."""
        key = self._key(record)
        return key in self._places or key in self._failed

    def failure(self, record: VideoRecord) -> VideoDecodeError | None:
        """Why a video could not be decoded; `None` if it could, or if nobody has tried."""
        return self._failed.get(self._key(record))

    def file_of(self, records: Sequence[VideoRecord]) -> Path:
        """The file of the part that consists of some videos."""
        name = _digest([self._key(record) for record in records])[:32]
        return self.folder / f"{name}{_WITH_VIEWS if self.keeps_views else ''}{_SUFFIX}"

    def find_part(self, records: Sequence[VideoRecord]) -> bool:
        """Look for a part that another process has written since the store was opened. Returns whether it exists."""
        return self._add(self.file_of(records))

    def write_part(self, asked: Sequence[VideoRecord], features: VideoFeatures) -> None:
        """Save a part, atomically.

        Args:
            asked: its videos, decoded or not.
            features: the features of those that could be decoded, with views if the store keeps them, and the errors of
                the others.

        Raises:
            RunError: it cannot be written.
        """
        keys = {record.video_id: self._key(record) for record in asked}
        note = {
            "videos": [keys[record.video_id] for record in features.records],
            "failed": {keys[name]: [error.path, error.cause] for name, error in features.failed.items()},
        }
        arrays = {f"mean/{name}": values for name, values in features.arrays.items()}
        arrays |= {f"view/{name}": values for name, values in features.views.items()}
        file = self.file_of(asked)
        try:
            with replacing_stream(file) as stream:
                np.savez(stream, allow_pickle=False, note=np.array(json.dumps(note)), **arrays)
        except OSError as error:
            raise RunError(
                f"{file} cannot be written ({error.strerror or error}). Finished parts are kept. Free some disk space "
                "or make the folder writable, then repeat the command."
            ) from error
        self._add(file)

    def read(self, records: Sequence[VideoRecord]) -> VideoFeatures:
        """Read the features of videos that are in the store.

        Args:
            records: the videos. Those that could not be decoded are listed as failed.

        Raises:
            RunError: a file is damaged.
        """
        decoded = [record for record in records if self._key(record) in self._places]
        rows_by_file: dict[Path, list[tuple[int, int]]] = {}
        for row, record in enumerate(decoded):
            file, place = self._places[self._key(record)]
            rows_by_file.setdefault(file, []).append((row, place))
        groups: dict[str, Arrays] = {"mean": {}, "view": {}}
        for file, rows in rows_by_file.items():
            to, places = map(list, zip(*rows, strict=True))
            for group, name, values in self._arrays(file):
                into = groups[group].setdefault(name, np.empty((len(decoded), *values.shape[1:]), values.dtype))
                into[to] = values[places]
        failed = {record.video_id: error for record in records if (error := self.failure(record))}
        return VideoFeatures(decoded, groups["mean"], len(records), failed, groups["view"])

    def _key(self, record: VideoRecord) -> str:
        """A digest of the identity that a video had when this store first met it."""
        name = (record.video_id, record.path)
        if name not in self._keys:
            self._keys[name] = _digest(identity(record))[:24]
        return self._keys[name]

    def _arrays(self, file: Path) -> list[tuple[str, str, np.ndarray]]:
        """The arrays of a part, each with its group and name; those of single views only if they are needed."""
        try:
            with np.load(file) as stored:
                names = [key.partition("/") for key in stored.files if "/" in key]
                return [
                    (group, name, stored[f"{group}/{name}"])
                    for group, _, name in names
                    if group == "mean" or self.needs_views
                ]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise RunError(f"{file} is damaged ({error}). Delete it and repeat the command.") from error

    def _add(self, file: Path) -> bool:
        """Take note of the videos of a part. Returns `False` if there is no such file, or it cannot be read."""
        try:
            with np.load(file) as stored:
                note = json.loads(str(stored["note"]))
                self._places |= {key: (file, row) for row, key in enumerate(note["videos"])}
                self._failed |= {key: VideoDecodeError(*failure) for key, failure in note["failed"].items()}
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return False
        return True


def digest_of_weights(model: keras.Model) -> str:
    """SHA-256 of a network's weights, whatever file they were loaded from."""
    digest = hashlib.sha256()
    for variable in model.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable.value)).tobytes())
    return digest.hexdigest()


def identity(record: VideoRecord) -> list[str | int | float]:
    """The id of a video, and facts that change when its file is replaced by another one of the same name."""
    if record.stored:
        return [record.video_id, *_status(record.stored.shard), record.stored.offset, record.stored.size]
    return [record.video_id, *_status(record.path), *(record.segment or ())]


def _status(path: str) -> list[str | int]:
    if is_remote(path):
        return [path]
    path = os.path.abspath(path)  # noqa: PTH100
    try:
        status = os.stat(file_of(path))  # noqa: PTH116
    except OSError:  # extraction will count it as failed
        return [path]
    return [path, status.st_size, status.st_mtime_ns]


def _made_from(encoder: ClipEncoder, experiment: Experiment) -> list[Any]:
    """Everything besides the videos that features depend on, except for rounding errors."""
    data = experiment.data
    clips = [data.frames, data.stride, data.decode_size, data.decoder, experiment.evaluate.clips]
    network = [encoder.pyramid.dtype_policy.name, list(encoder.levels), list(encoder.heads), keras.backend.backend()]
    crops = [encoder.crops, encoder.view_size, encoder.focus, encoder.steady]
    # Only if it is set, so that features of earlier versions are found.
    rate = [data.fps] if data.fps else []
    return [_VERSION, digest_of_weights(encoder), clips, crops, network, *rate]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
