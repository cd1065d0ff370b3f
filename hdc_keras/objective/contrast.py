"""The objective of HDC: InfoNCE for each level and task, weighted by measured invariance."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from hdc_keras.config import ContrastConfig
from hdc_keras.objective.averages import WeightAverages
from hdc_keras.objective.heads import ProjectionHead, unit_length
from hdc_keras.objective.losses import ContrastResult, info_nce, info_nce_with_queue
from hdc_keras.objective.objective import Features, Objective, ObjectiveOutput
from hdc_keras.objective.weighting import InvarianceWeights, invariance
from hdc_keras.views.generator import positives_of

Tensor = Any

# Values monitored for each level and task, in the order in which `loss_of` stacks them. The deviations of all pairs
# follow, because the record of steps in files of version 0.1.0 holds only the others.
_MONITORED = ("loss", "accuracy", "weight", "invariance")
_DEVIATION = "deviation"


def embedding_deviation(embeddings: Tensor) -> Tensor:
    """How much embeddings differ between videos, without a gradient.

    Args:
        embeddings: (batch, dim) float32 of unit length; zero vectors are allowed.

    Returns:
        The square root of the variance over the batch, summed over the channels: 1 if the embeddings are spread evenly
        over the sphere, 0 if all are equal.
    """
    return ops.sqrt(ops.sum(ops.var(ops.stop_gradient(embeddings), axis=0)))


class ContrastObjective(Objective):
    """`sum_l (w_spatial_l L_spatial_l + lambda w_temporal_l L_temporal_l)` over levels `l` and tasks.

    Args:
        config: tasks, levels, heads, losses and weighting.
        feature_widths: channels of the pooled features by level.
        view_names: the views, in the order in which features hold them; the first is the anchor.
        negative_views: names of the views that are temporal negatives.
        ema: momentum of the moving average of the heads; there is none if `None`. A queue needs one.
        **kwargs: `name`, `dtype` (of the projection heads; losses are float32).

    Attributes:
        tasks: names of the tasks.
        levels: levels that carry a loss.
        pairs: each (level, task) that has a loss.
        heads: a `ProjectionHead` by `{level}_{task}`.
        averages: moving averages of `head_variables`, or `None`.
        queues: (length, embedding_dim) the latest keys by `{level}_{task}`, newest first; empty if negatives come from
            the batch. Like MoCo's, they start with random vectors.
        invariance_weights: the weight of each level and task.
    """

    def __init__(
        self,
        config: ContrastConfig,
        feature_widths: Mapping[str, int],
        view_names: Sequence[str],
        negative_views: Sequence[str] = (),
        ema: float | None = None,
        **kwargs: Any,
    ):
        positives = positives_of(config.task)
        levels, tasks, pairs = config.used_levels, tuple(positives), config.pairs
        names = [f"{level}_{task}_{kind}" for level, task in pairs for kind in _MONITORED]
        names += [f"{level}_{task}_{_DEVIATION}" for level, task in pairs]
        super().__init__(names, **kwargs)
        self.config = config
        self.levels = levels
        self.tasks = tasks
        self.pairs = pairs
        self._positive_views = {task: list(view_names).index(view) for task, view in positives.items()}
        self._negative_views = [list(view_names).index(view) for view in negative_views]
        self.heads = {}
        for level, task in pairs:
            name = f"{level}_{task}"
            head = ProjectionHead(config.embedding_dim, config.hidden_dim, dtype=self.dtype_policy, name=f"{name}_head")
            head.build((None, feature_widths[level]))
            self.heads[name] = head
        self.invariance_weights = InvarianceWeights(config, tasks, name="invariance_weights")
        self.averages = WeightAverages(self.head_variables, ema, name="head_averages") if ema else None
        self.queues = {}
        for number, (level, task) in enumerate(pairs if config.negatives == "queue" else ()):
            self.queues[f"{level}_{task}"] = self.add_weight(
                shape=(config.queue_length_of(level, task), config.embedding_dim),
                dtype="float32",
                initializer=_RandomDirections(seed=number),
                trainable=False,
                name=f"{level}_{task}_queue",
            )
        self.built = True

    @property
    def head_variables(self) -> Sequence[Any]:
        """The variables of all heads."""
        return [variable for head in self.heads.values() for variable in head.variables]

    def embed(self, features: Features, training: bool | None = None) -> dict[str, Tensor]:
        """Project features by level, (views, batch, channels).

        Returns:
            `{level}_features`: the features themselves, and `{level}_{task}`: (views, batch, embedding_dim) float32 of
            unit length.
        """
        outputs = {f"{level}_features": value for level, value in features.items()}
        for level, task in self.pairs:
            views, batch, width = ops.shape(features[level])
            name, encode = f"{level}_{task}", self.heads[f"{level}_{task}"]
            rows = ops.reshape(features[level], (views * batch, width))
            if self.queues:
                keys = self._keys(name, rows[batch:])
                embedded = ops.concatenate([encode(rows[:batch], training=training), keys])
            else:
                embedded = encode(rows, training=training)
            outputs[name] = ops.reshape(embedded, (views, batch, self.config.embedding_dim))
        return outputs

    def _keys(self, name: str, rows: Tensor) -> Tensor:
        """Embed (rows, channels) by the moving average of a head."""
        averages = dict(zip(map(id, self.head_variables), self.averages.averages, strict=True))
        head = self.heads[name]
        weights, state = (
            [ops.convert_to_tensor(averages[id(variable)].value) for variable in variables]
            for variables in (head.trainable_variables, head.non_trainable_variables)
        )
        keys, _ = head.stateless_call(weights, state, ops.stop_gradient(rows), training=False)
        return ops.stop_gradient(keys)

    def call(self, features: Features, training: bool | None = None) -> ObjectiveOutput:
        """The loss of pooled features. When training, the averages move first, so that keys are those of this step."""
        if training and self.averages:
            self.averages.update([ops.convert_to_tensor(variable.value) for variable in self.head_variables])
        return super().call(features, training)

    def loss_of(self, outputs: Mapping[str, Tensor], training: bool | None = None) -> ObjectiveOutput:
        """The weighted loss for the outputs of `embed`. When training, updates the mean invariance and the queues."""
        results = {pair: self._info_nce(*pair, outputs) for pair in self.pairs}
        measured = ops.stack(
            [ops.stack([self._invariance(level, task, outputs) for task in self.tasks]) for level in self.levels]
        )
        if training:
            self.invariance_weights.update(measured)
            for level, task in self.pairs if self.queues else ():
                queue = self.queues[f"{level}_{task}"]
                _, keys = self._positive_pair(task, outputs[f"{level}_{task}"])
                queue.assign(ops.concatenate([keys, queue])[: queue.shape[0]])
        weights = ops.stop_gradient(self.invariance_weights.loss_weights())
        total, monitored = 0.0, []
        for level, task in self.pairs:
            place = self.levels.index(level), self.tasks.index(task)
            result = results[level, task]
            task_weight = self.config.temporal_weight if task == "temporal" else 1.0
            total = total + task_weight * weights[place] * result.loss
            monitored += [result.loss, result.accuracy, weights[place], measured[place]]  # in the order of _MONITORED
        anchors = [outputs[f"{level}_{task}"][0] for level, task in self.pairs]
        monitored += [embedding_deviation(embeddings) for embeddings in anchors]
        return ObjectiveOutput(total, ops.stack(monitored))

    def _info_nce(self, level: str, task: str, outputs: Mapping[str, Tensor]) -> ContrastResult:
        views = outputs[f"{level}_{task}"]
        if self.queues:
            queue = ops.convert_to_tensor(self.queues[f"{level}_{task}"].value)
            return info_nce_with_queue(*self._positive_pair(task, views), queue, self.config.temperature)
        negatives = None
        if task == "temporal" and self._negative_views:
            negatives = ops.stack([views[view] for view in self._negative_views])
        return info_nce(
            *self._positive_pair(task, views),
            self.config.temperature,
            negatives,
            self.config.temporal_negative_weight,
        )

    def _invariance(self, level: str, task: str, outputs: Mapping[str, Tensor]) -> Tensor:
        """How invariant a level is to the difference between a task's anchor and positive; 0 if it has no such loss."""
        if (level, task) not in self.pairs:
            return ops.zeros(())
        basis = f"{level}_features" if self.config.measure_on == "features" else f"{level}_{task}"
        return invariance(*self._positive_pair(task, outputs[basis]))

    def _positive_pair(self, task: str, views: Tensor) -> tuple[Tensor, Tensor]:
        """Anchor and positive of a task, from (views, batch, channels)."""
        return views[0], views[self._positive_views[task]]


class _RandomDirections(keras.initializers.RandomNormal):
    """Random vectors of unit length."""

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Tensor:
        return unit_length(super().__call__(shape, dtype))
