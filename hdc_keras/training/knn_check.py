"""The kNN check: a cheap measure, during pretraining, of what the model has learned so far."""

from collections.abc import Sequence

from hdc_keras.config import Experiment
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.records import VideoRecord
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.extraction import extract_features
from hdc_keras.model import HDC
from hdc_keras.probes.registry import judge

# At most about this many videos of both splits together, with few clips of each: enough to follow a run, not to report
# a result.
_VIDEOS = 256
_CLIPS = 2


class KnnCheck:
    """Classifies held-out videos by their nearest training videos, every few epochs.

    Args:
        model: the model in training.
        experiment: its `train.knn_every` and `evaluate` keys are the settings of the check.
        records: videos with splits. There is no check if no training video or no test video has labels.
        store: decodes the videos.
    """

    def __init__(self, model: HDC, experiment: Experiment, records: Sequence[VideoRecord], store: FrameStore):
        self.encoder = ClipEncoder(model, experiment.data.decode_size)
        self.experiment = experiment
        self.records = records
        self.store = store

    def __call__(self, epoch: int) -> dict[str, float]:
        """Top-1 accuracy by column name, `knn_{label column}`, after an epoch; empty after epochs without a check."""
        every, last = self.experiment.train.knn_every, self.experiment.train.epochs
        if not every or (epoch % every and epoch != last):
            return {}
        spacing = 1 + len(self.records) // _VIDEOS
        chosen = [
            [record for record in self.records if record.split == split and record.labels][::spacing]
            for split in ("train", "test")
        ]
        if not all(chosen):
            return {}
        settings = self.experiment.evaluate.model_copy(update={"clips": _CLIPS})
        quick = self.experiment.model_copy(update={"evaluate": settings})
        features = extract_features(self.encoder, chosen[0] + chosen[1], quick, self.store)
        sources: dict[str, list[str]] = {"features": list(self.experiment.contrast.used_levels)}
        answers = judge("knn", features, sources, self.experiment.evaluate)
        return {f"knn_{answer.column}": answer.judgement.metrics["top1"] for answer in answers}
