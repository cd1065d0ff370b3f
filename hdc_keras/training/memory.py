"""Whether a run fits the memory of its devices, as computed before the first step."""

from typing import NamedTuple

from hdc_keras.config import Experiment
from hdc_keras.devices import device_memory
from hdc_keras.model import HDC
from hdc_keras.step.memory import step_memory
from hdc_keras.training.distribution import Distribution

_GIB = 2**30
# The estimate is within 20 % of what was measured (tests/step/test_memory.py).
_ERROR = 0.2


class MemoryNeed(NamedTuple):
    """What a step needs on each device, and what a device has.

    Attributes:
        needed: bytes, by formula.
        held: bytes; 0 if unknown.
        whose: whose memory `held` is, worded as in "of the GPU".
        advice: the smallest number of micro-batches with which the step fits; `None` if it fits, or if none does.
    """

    needed: int
    held: int
    whose: str
    advice: int | None

    @property
    def fits(self) -> bool | None:
        """Whether the step fits; `None` if that is unknown, or closer than the formula is exact."""
        if not self.held or abs(self.needed / self.held - 1) <= _ERROR:
            return None
        return self.needed < self.held

    def __str__(self) -> str:
        need = f"{self.needed / _GIB:.2f} GiB by formula"
        if not self.held:
            return f"{need}; the memory {self.whose} is unknown"
        verdict = {True: "fits into", False: "does not fit into", None: "may just fit into"}[self.fits]
        advice = f"; train.micro_batches={self.advice} would" if self.advice else ""
        return f"{need}, which {verdict} the {self.held / _GIB:.1f} GiB {self.whose}{advice}"


def memory_need(model: HDC, experiment: Experiment, distribution: Distribution) -> MemoryNeed:
    """Estimate the memory of a step, and compare it with the device's.

    Args:
        model: the compiled model.
        experiment: its experiment.
        distribution: the devices that share a batch.
    """
    train, data = experiment.train, experiment.data
    videos = train.batch_size // distribution.device_count
    windows = (2, data.frames, *data.decode_size, 3)
    slots = 2 if train.optimizer == "adamw" else 1

    def needed(micro_batches: int) -> int:
        return step_memory(model, videos, windows, slots, micro_batches).total

    (held, whose), current = device_memory(), needed(train.micro_batches)
    pieces = (n for n in range(train.micro_batches + 1, videos + 1) if videos % n == 0)
    advice = None
    if held and current > held:
        advice = next((n for n in pieces if needed(n) * (1 + _ERROR) < held), None)
    return MemoryNeed(current, held, whose, advice)
