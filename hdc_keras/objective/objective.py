"""The interface between the training step and the loss that it minimises."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

Tensor = Any
Features = dict[str, Tensor]


class ObjectiveOutput(NamedTuple):
    """What an objective computes for one batch.

    Attributes:
        loss: scalar float32.
        monitored: (names,) float32, in the order of `Objective.monitored_names`.
    """

    loss: Tensor
    monitored: Tensor


class Objective(keras.layers.Layer):
    """A loss on pooled features, with its trainable weights, its state and the values that it reports.

    The training step calls `stateless_call` with the features of the whole batch, differentiates the loss, and commits
    the new state only if the step is finite. A subclass may therefore hold any state (a queue of negatives, moving
    averages) as non-trainable weights and update them in `call`; the step needs to know nothing about them.

    Args:
        monitored_names: names of the numbers that are reported beside the loss.
        **kwargs: `name`, `dtype`.

    Attributes:
        averages: moving averages of `head_variables`, or `None` if the objective keeps none.
    """

    def __init__(self, monitored_names: Sequence[str], **kwargs: Any):
        super().__init__(**kwargs)
        self.monitored_names = tuple(monitored_names)
        self.means = NamedMeans(self.monitored_names, name="means")
        self.averages: Any = None
        self.built = True  # the step calls only `stateless_call`, which Keras refuses for a layer that it has not built

    @property
    def head_variables(self) -> Sequence[Any]:
        """The variables that are averaged."""
        return ()

    def call(self, features: Features, training: bool | None = None) -> ObjectiveOutput:
        """The loss of pooled features.

        Args:
            features: by level, (views, batch, channels) float32; the whole batch, over all data-parallel replicas.
            training: whether batch norm uses the batch's statistics and moving averages are updated.
        """
        return self.loss_of(self.embed(features, training), training)

    def embed(self, features: Features, training: bool | None = None) -> dict[str, Tensor]:
        """Features and embeddings by name: the inputs of `loss_of`, and the outputs of `HDC.call`."""
        raise NotImplementedError(f"{type(self).__name__} must implement `embed`.")

    def loss_of(self, outputs: Mapping[str, Tensor], training: bool | None = None) -> ObjectiveOutput:
        """The loss for the outputs of `embed`; updates moving averages when training."""
        raise NotImplementedError(f"{type(self).__name__} must implement `loss_of`.")

    def track(self, monitored: Tensor, weight: Tensor) -> None:
        """Add the monitored numbers of a batch, counted `weight` times, to the means of the epoch."""
        self.means.update_state(monitored, weight)


class NamedMeans(keras.metrics.Metric):
    """Weighted means of many numbers in one variable.

    One Keras metric for each number would create as many variables and add hundreds of operations to a step.

    Args:
        names: names of the numbers, in the order in which they are passed.
    """

    def __init__(self, names: Sequence[str], **kwargs: Any):
        super().__init__(**kwargs)
        self.names = list(names)
        self.totals = self.add_variable((len(self.names),), "zeros", name="totals")
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, values: Tensor, weight: Tensor) -> None:
        """Add (names,) `values`, each counted `weight` times."""
        weight = ops.cast(weight, "float32")
        self.totals.assign_add(ops.cast(values, "float32") * weight)
        self.count.assign_add(weight)

    def result(self) -> dict[str, Tensor]:
        """Mean by name."""
        means = self.totals / ops.maximum(self.count, 1.0)
        return {name: means[place] for place, name in enumerate(self.names)}
