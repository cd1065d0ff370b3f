"""How a training step is computed."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class StepOptions:
    """How a step is computed. By default, the whole batch is processed at once.

    Attributes:
        micro_batches: number of pieces into which each replica splits its videos, to save memory.
        accumulate: how micro-batches are combined. "cached": negatives come from the whole batch, and the gradient
            equals that of the whole batch; features are computed twice. "plain": each micro-batch uses only its
            own negatives, and gradients are averaged, as in ordinary gradient accumulation.
        rematerialise: keep only the outputs of the backbone's blocks for the backward pass and recompute the rest.
        clip_norm: maximum global norm of the gradient; no clipping when `None`.
        compile_features: compile only views and backbone with XLA, because it cannot compile the collectives between
            the replicas of a TensorFlow strategy.
        shuffle_statistics: with several replicas or cached micro-batches, let each positive share its batch statistics
            with other videos than its anchor does. Otherwise the statistics tell which candidate is the positive,
            because no negative of another group has those of the anchor (He et al. 2020, arXiv 1911.05722, section
            3.3). The draws of the augmentation move on by one number for each video.

    Raises:
        ValueError: an option is out of range.
    """

    micro_batches: int = 1
    accumulate: Literal["cached", "plain"] = "cached"
    rematerialise: bool = False
    clip_norm: float | None = None
    compile_features: bool = False
    shuffle_statistics: bool = False

    def __post_init__(self) -> None:
        if self.micro_batches < 1:
            raise ValueError(f"`micro_batches` must be 1 or more. Received: {self.micro_batches}")
        if self.accumulate not in ("cached", "plain"):
            raise ValueError(f"`accumulate` must be `cached` or `plain`. Received: {self.accumulate}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"`clip_norm` must be positive. Received: {self.clip_norm}")
