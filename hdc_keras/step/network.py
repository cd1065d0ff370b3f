"""The interface of a model that the training step can train, and the values of its variables."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from keras import ops

from hdc_keras.objective.averages import WeightAverages
from hdc_keras.objective.objective import Features, Objective
from hdc_keras.step.options import StepOptions
from hdc_keras.step.record import StepRecord
from hdc_keras.views.generator import ViewGenerator

Tensor = Any
Values = list[Tensor]
FeaturesFunction = Callable[[Values, Values, "Videos"], tuple[Features, Values]]
KeysFunction = Callable[[Values, "Videos"], Features]


class Videos(NamedTuple):
    """What the views of some videos are made from.

    Attributes:
        windows: (batch, 2, time, height, width, 3). In micro-batches, (pieces, batch / pieces, 2, ...).
        draws: the augmentation of these windows, as `ViewGenerator.draw` returns it.
        of_positives: windows and draws of the videos that the positives show; `None` if they are the same videos.
    """

    windows: Tensor
    draws: Any
    of_positives: tuple[Tensor, Any] | None = None


class ContrastModel(Protocol):
    """A model that `train_step` can train: views -> `pyramid` -> `pool` -> `objective`.

    Attributes:
        backbone: the network to pretrain, a `VideoBackbone`.
        pyramid: clips to feature maps by level, on the backbone's weights.
        blocks: the backbone's blocks, to be rematerialised one by one.
        feature_widths: channels by level.
        online_views: names of the views that the network itself encodes; the others are keys.
        averages: moving averages of the weights of `pyramid`, or `None`.
        features_function: features of the online views; what `pure_features` returns for this model.
        keys_function: features of the other views; what `pure_keys` returns, or `None` if there are none.
    """

    backbone: Any
    pyramid: Any
    blocks: Sequence[Any]
    view_generator: ViewGenerator
    objective: Objective
    feature_widths: dict[str, int]
    step_options: StepOptions
    step_record: StepRecord
    online_views: Sequence[str]
    averages: WeightAverages | None
    features_function: FeaturesFunction
    keys_function: KeysFunction | None
    optimizer: Any
    loss_tracker: Any
    loss_on_host: Callable[[Tensor], Tensor]
    trainable_variables: list[Any]
    non_trainable_variables: list[Any]
    metrics_variables: list[Any]

    def pool(self, maps: dict[str, Tensor], views: int) -> Features:
        """Feature maps by level to (views, batch, channels)."""

    def get_metrics_result(self) -> dict[str, Tensor]:
        """Means of the epoch so far."""


class NetworkValues(NamedTuple):
    """The values of a model's variables at the beginning of a step, or of a micro-batch.

    Attributes:
        backbone: trainable variables of `pyramid`.
        backbone_state: non-trainable variables of `pyramid`, the statistics of batch norm.
        objective: trainable variables of the objective.
        objective_state: non-trainable variables of the objective.
        averages: variables of `ContrastModel.averages`, after their update in this step; empty without averages.
    """

    backbone: Values
    backbone_state: Values
    objective: Values
    objective_state: Values
    averages: Values

    @classmethod
    def of(cls, model: ContrastModel) -> "NetworkValues":
        """The current values, with averages that have moved towards them."""
        backbone = values_of(model.pyramid.trainable_variables)
        state = values_of(model.pyramid.non_trainable_variables)
        return cls(
            backbone,
            state,
            values_of(model.objective.trainable_variables),
            values_of(model.objective.non_trainable_variables),
            model.averages.moved([*backbone, *state]) if model.averages else [],
        )


def values_of(variables: Sequence[Any]) -> Values:
    """The values of variables, as tensors."""
    return [ops.convert_to_tensor(variable.value) for variable in variables]
