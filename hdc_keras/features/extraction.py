"""Extract frozen features: pass every video of a set through a network once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import frame_store
from hdc_keras.data.loading import DecodeFailures, FrameStore, clip_batches
from hdc_keras.data.preparing import Part
from hdc_keras.data.records import VideoRecord, sample_files
from hdc_keras.engines.here import Here
from hdc_keras.engines.work import Engine, RunPart, Tally
from hdc_keras.errors import DataError, RunError
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.store import FeatureStore
from hdc_keras.features.video_features import Arrays, VideoFeatures
from hdc_keras.files import remove_leftovers
from hdc_keras.locks import try_exclusive

# (videos done, total videos).
Progress = Callable[[int, int], None]

# Videos in a part: a killed process loses the work on one part at most (our choice).
VIDEOS_PER_PART = 64


@dataclass(frozen=True)
class Cluster:
    """Where other processes than this one extract features.

    Args:
        engine: runs the parts there.
        load: loads the frozen network in one of them. It can be pickled.
        files: the files that it reads.
    """

    engine: Engine
    load: Callable[[], ClipEncoder]
    files: Sequence[Path]


class Extraction:
    """The extraction of the features of a set, in parts: `plan`, `run_part` for each part, `read`.

    Several processes may run the same extraction at once. Each part is extracted by one of them; if that process is
    killed, another one takes over.

    Args:
        encoder: the frozen network.
        records: the videos, with unique ids.
        experiment: its `data` and `evaluate` sections define the clips.
        frames: decodes the videos.
        store: where the features are kept; it was opened for the same network and experiment.

    Attributes:
        failures: the videos that are known not to be decodable.

    Raises:
        DataError: more videos than `data.max_failed_share` are known not to be decodable.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        records: Sequence[VideoRecord],
        experiment: Experiment,
        frames: FrameStore,
        store: FeatureStore,
    ):
        self.encoder = encoder
        self.records = sorted(records, key=lambda record: record.video_id)
        self.experiment = experiment
        self.frames = frames
        self.store = store
        self.failures = DecodeFailures(len(records), experiment.data.max_failed_share)
        self._count_failures(self.records)

    def plan(self) -> list[list[VideoRecord]]:
        """The videos of each part, by its number. It depends on the set only, not on what was extracted already."""
        return [self._videos_of(number) for number in range(-(-len(self.records) // VIDEOS_PER_PART))]

    def run_part(self, number: int, progress: Progress | None = None) -> bool:
        """Extract what is missing of a part. Does nothing if nothing is missing.

        Args:
            number: its number in the plan.
            progress: called with (videos done, total videos) of this part.

        Returns:
            Whether the part is finished; `False` if another process is at work on it.

        Raises:
            DataError: too many videos cannot be decoded, or a video is neither encoded nor listed as failed.
            RunError: the part cannot be written.
        """
        missing = [record for record in self._videos_of(number) if not self.store.has(record)]
        return not missing or self.extract(missing, progress)

    def extract(self, records: Sequence[VideoRecord], progress: Progress | None = None) -> bool:
        """Extract the features of videos as one part. Arguments, result and errors are those of `run_part`."""
        file = self.store.file_of(records)
        with try_exclusive(file) as is_mine:
            if self.store.find_part(records):
                self._count_failures(records)
                return True
            if is_mine:
                remove_leftovers(file)
                features = encode_videos(
                    self.encoder,
                    records,
                    self.experiment,
                    self.frames,
                    self.failures,
                    progress,
                    keep_views=self.store.keeps_views,
                )
                self.store.write_part(records, features)
        return is_mine

    def run(self, part: Part = Part(), progress: Progress | None = None, cluster: Cluster | None = None) -> None:
        """Run all parts, or a share of them, and wait for those that other processes are extracting.

        Args:
            part: the share of this process.
            progress: called with (videos done, total videos) of the share.
            cluster: runs the parts; this process when `None`.

        Raises:
            DataError: as in `run_part`.
            RunError: as in `run_part`; or a worker of the cluster sees other videos or another network.
        """
        mine = {number: videos for number, videos in enumerate(self.plan()) if part.holds(number)}
        total = sum(map(len, mine.values()))
        parts = {number: [one for one in videos if not self.store.has(one)] for number, videos in mine.items()}
        missing = {number: videos for number, videos in parts.items() if videos}

        def show(done: int, failed: int) -> None:
            if progress:
                progress(done, total)

        def finished(number: int) -> None:
            videos = missing[number]
            if not all(map(self.store.has, videos)) and not self.store.find_part(videos):
                raise RunError(
                    f"a worker has extracted features, but {self.store.file_of(videos)} does not exist. It sees other "
                    "files of the same names, or another network: all nodes need the same files, backend and version."
                )
            self._count_failures(videos)
            tally.report(number, len(videos))

        tally = Tally(show, total - sum(map(len, missing.values())))
        if cluster:
            folder, files = self.store.folder.parent.absolute(), [str(file.absolute()) for file in cluster.files]
            work = _RemoteExtraction(
                folder, [*files, *sample_files(self.records)], cluster.load, self.experiment, len(self.records)
            )
            cluster.engine.run(work, missing, None, tally.report, finished)
        else:
            Here().run(_LocalExtraction(self), missing, None, tally.report, finished)

    def read(self, records: Sequence[VideoRecord] | None = None) -> VideoFeatures:
        """The features of the set, or of some of its videos, once all parts are finished.

        Raises:
            DataError: the features of a video are missing, or too many videos could not be decoded.
            RunError: a file is damaged.
        """
        records = self.records if records is None else records
        missing = sum(not self.store.has(record) for record in records)
        if missing:
            raise DataError(f"the features of {missing} of {len(records)} videos have not been extracted.")
        self._count_failures(records)
        return self.store.read(records)

    def _videos_of(self, number: int) -> list[VideoRecord]:
        return self.records[number * VIDEOS_PER_PART : (number + 1) * VIDEOS_PER_PART]

    def _count_failures(self, records: Sequence[VideoRecord]) -> None:
        """Count the videos that could not be decoded by an earlier process, or another one."""
        for record in records:
            failure = self.store.failure(record)
            if failure and record.video_id not in self.failures.by_id:
                self.failures.add(failure, record.video_id)


@dataclass(frozen=True)
class _LocalExtraction:
    """Extracts the videos of a part in this process. See `Work`."""

    extraction: Extraction
    files = ()
    runs_network = True

    @property
    def folder(self) -> Path:
        return self.extraction.store.folder

    @contextmanager
    def open(self) -> Iterator[RunPart[Sequence[VideoRecord]]]:
        yield lambda number, records, report: self.extraction.extract(records, lambda done, _: report(done, 0))


@dataclass(frozen=True)
class _RemoteExtraction:
    """Extracts the videos of a part in a process that loads the network first. See `Work`."""

    folder: Path
    files: Sequence[str]
    load: Callable[[], ClipEncoder]
    experiment: Experiment
    videos: int
    runs_network = True

    @contextmanager
    def open(self) -> Iterator[RunPart[Sequence[VideoRecord]]]:
        encoder = self.load()
        store = FeatureStore(self.folder, encoder, self.experiment)
        frames = frame_store(self.experiment, keeps=False)
        extraction = Extraction(encoder, [], self.experiment, frames, store)
        # Of all videos, of which this process gets some. The process that started the job adds up all failures.
        extraction.failures = DecodeFailures(self.videos, self.experiment.data.max_failed_share)
        with _LocalExtraction(extraction).open() as run_part:
            yield run_part


def extract_features(
    encoder: ClipEncoder,
    records: Sequence[VideoRecord],
    experiment: Experiment,
    frames: FrameStore,
    progress: Progress | None = None,
    store: FeatureStore | None = None,
) -> VideoFeatures:
    """Encode `evaluate.clips` evenly spaced clips of every video, `encoder.crops` crops of each, and average them.

    Args:
        encoder: the frozen network.
        records: the videos. The result contains the features of each, or lists it as failed.
        experiment: its `data` and `evaluate` sections define the clips.
        frames: decodes the videos.
        progress: called with (videos done, total videos).
        store: features that it has are not extracted again; new ones are added to it. `None` keeps nothing.

    Raises:
        DataError: too many videos cannot be decoded, or a video is neither encoded nor listed as failed.
        RunError: the features cannot be written.
    """
    if store is None:
        failures = DecodeFailures(len(records), experiment.data.max_failed_share)
        return encode_videos(encoder, records, experiment, frames, failures, progress)
    extraction = Extraction(encoder, records, experiment, frames, store)
    extraction.run(progress=progress)
    return extraction.read(records)


def encode_videos(
    encoder: ClipEncoder,
    records: Sequence[VideoRecord],
    experiment: Experiment,
    frames: FrameStore,
    failures: DecodeFailures,
    progress: Progress | None = None,
    keep_views: bool = False,
) -> VideoFeatures:
    """Pass videos through a network, and keep the features in memory.

    Args:
        encoder: as in `extract_features`.
        records: as in `extract_features`.
        experiment: as in `extract_features`.
        frames: as in `extract_features`.
        failures: collects the videos that cannot be decoded.
        progress: as in `extract_features`.
        keep_views: whether to keep the features of every single view too.

    Raises:
        DataError: too many videos cannot be decoded, or a video is neither encoded nor listed as failed.
    """
    decoded: list[VideoRecord] = []
    means: dict[str, list[np.ndarray]] = {}
    views: dict[str, list[np.ndarray]] = {}
    for batch, outputs in encoded_batches(
        encoder.predict_on_batch, encoder.crops, records, experiment, frames, failures, progress
    ):
        decoded += batch
        for name, values in outputs.items():
            means.setdefault(name, []).append(values.mean(axis=1))
            if keep_views:
                views.setdefault(name, []).append(values)
    return VideoFeatures(
        decoded,
        {name: np.concatenate(values) for name, values in means.items()},
        len(records),
        {record.video_id: failures.by_id[record.video_id] for record in records if record.video_id in failures.by_id},
        {name: np.concatenate(values) for name, values in views.items()},
    )


def encoded_batches(
    encode: Callable[[np.ndarray], Arrays],
    crops: int,
    records: Sequence[VideoRecord],
    experiment: Experiment,
    frames: FrameStore,
    failures: DecodeFailures,
    progress: Progress | None = None,
) -> Iterator[tuple[list[VideoRecord], Arrays]]:
    """Pass every video through a network once, and yield the outputs batch by batch.

    Args:
        encode: the network, from clips (batch, time, height, width, 3) uint8 to (crops * batch, ...) arrays by name.
        crops: number of crops that the network makes of each clip.
        records: as in `extract_features`.
        experiment: as in `extract_features`.
        frames: as in `extract_features`.
        failures: collects the videos that cannot be decoded.
        progress: as in `extract_features`.

    Returns:
        An iterator over batches: the videos that were decoded, and (videos, clips * crops, ...) arrays by name.

    Raises:
        DataError: too many videos cannot be decoded, or a video is neither encoded nor listed as failed.
    """
    settings = experiment.evaluate
    reading = clip_batches(
        records,
        frames,
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
            # Pads a smaller batch with repeated videos, because backends compile the network for each batch size.
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
    failed = sum(record.video_id in failures.by_id for record in records)
    if encoded + failed != len(records):
        raise DataError(f"{len(records)} videos were requested, but {encoded} were encoded and {failed} failed.")
