"""What the publication of a protocol does differently."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hdc_keras.config import Experiment


@dataclass(frozen=True)
class Publication:
    """The differences between a protocol and the publication that it follows. A protocol of our own has none.

    Attributes:
        clips: the clips of the publication: some of `frames`, `stride`, `size` (height and width in pixels) and `views`
            ("10x3" for 10 clips with 3 crops each). Those of an experiment may differ.
        differences: what is always different: (as published, as done here) by name.
    """

    clips: Mapping[str, Any] = field(default_factory=dict)
    differences: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def reduced(self, experiment: Experiment) -> dict[str, list[Any]]:
        """List everything that differs, for a result: [as published, as done here] by name."""
        settings = experiment.evaluate
        used = {
            "frames": experiment.data.frames,
            "stride": experiment.data.stride,
            "size": experiment.views.size,
            "views": f"{settings.clips}x{settings.crops}",
        }
        found = {name: [value, used[name]] for name, value in self.clips.items() if value != used[name]}
        found |= {name: [published, here] for name, (published, here) in self.differences.items()}
        if settings.labels_per_class:
            found["labels_per_class"] = ["all", settings.labels_per_class]
        return found


# Differences that several protocols share.
PIXELS_OF_IMAGENET = ("mean and deviation of ImageNet", "mean and deviation of Kinetics")
BEST_ON_TEST = ("best accuracy on the test videos", "the last")
