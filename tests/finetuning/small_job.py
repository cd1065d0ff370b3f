"""A fine-tuning that takes seconds: few videos, small clips, a small network."""

from hdc_keras import Experiment
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.records import read_records, with_splits
from hdc_keras.finetuning.job import FineTuningJob
from hdc_keras.finetuning.recipes import FINE_TUNING
from hdc_keras.finetuning.validation_split import hold_out

SIZE = (20, 24)
EXPERIMENT = Experiment.model_validate(
    {
        "data": {"frames": 4, "stride": 1, "decode_size": SIZE, "max_failed_share": 0.5},
        "views": {"size": 16},
        "model": {"backbone": "r3d_tiny"},
        "evaluate": {"clips": 2, "batch_size": 4, "finetune_epochs": 3, "finetune_batch_size": 2},
    }
)
RECIPE = FINE_TUNING["finetune-rspnet"].applied(EXPERIMENT)


def small_job(folder, recipe=RECIPE, backbone=None, validation=0.0, experiment=EXPERIMENT):
    """The job for a folder of two classes with four videos each, of which one per class is a test video."""
    records = with_splits(read_records(folder), 0.25, 0)
    train, held_out = hold_out(records, validation, "label", 0)
    test = [record for record in records if record.split == "test"]
    return FineTuningJob(
        "a test", recipe, backbone, experiment, train, held_out, test, "label", 0, saves_classifier=backbone is not None
    )


def frame_store():
    return FrameStore(SIZE, 0.1)
