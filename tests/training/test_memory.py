"""Whether a run fits the memory of its devices is said before its first step."""

import pytest

from hdc_keras.config import Length
from hdc_keras.training import memory
from hdc_keras.training.distribution import Distribution
from hdc_keras.training.memory import MemoryNeed, memory_need
from hdc_keras.training.models import compiled_model
from tests.training.small_runs import experiment_on

GIB = 2**30


@pytest.mark.parametrize(
    ("need", "text"),
    [
        (
            MemoryNeed(10 * GIB, 24 * GIB, "of the GPU", None),
            "10.00 GiB by formula, which fits into the 24.0 GiB of the GPU",
        ),
        (MemoryNeed(22 * GIB, 24 * GIB, "of the GPU", None), "which may just fit into"),
        (
            MemoryNeed(40 * GIB, 24 * GIB, "of the GPU", 4),
            "does not fit into the 24.0 GiB of the GPU; train.micro_batches=4",
        ),
        (
            MemoryNeed(40 * GIB, 0, "of the first GPU", None),
            "40.00 GiB by formula; the memory of the first GPU is unknown",
        ),
    ],
)
def test_a_need_says_whether_it_fits(need, text):
    assert text in str(need)


def test_the_advice_is_the_smallest_number_of_micro_batches_that_fits(class_folder, monkeypatch):
    experiment = experiment_on(class_folder, batch_size=4)
    distribution = Distribution(experiment.train)
    model = compiled_model(experiment, Length(1, 1), distribution)
    whole = memory_need(model, experiment, distribution)
    assert whole.fits and whole.advice is None  # on a machine with more than a few MiB

    monkeypatch.setattr(memory, "device_memory", lambda: (int(0.9 * whole.needed), "of the GPU"))
    scarce = memory_need(model, experiment, distribution)
    assert scarce.fits is None and scarce.advice in (2, 4)

    monkeypatch.setattr(memory, "device_memory", lambda: (1000, "of the GPU"))
    assert memory_need(model, experiment, distribution).fits is False
    assert memory_need(model, experiment, distribution).advice is None
