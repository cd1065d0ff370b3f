"""The gradient of a step, computed for the whole batch at once or in micro-batches.

The computation is cut at its narrowest point, the pooled features of each level. Before the cut, no video depends on
any other, so each replica and each micro-batch computes the features of its own videos. After the cut everything is
small: each replica gathers the features of the whole batch and computes the same objective for all of it. Each replica
and micro-batch then carries the gradient with respect to its features back through the backbone. With micro-batches
this is gradient caching (GradCache: Gao et al. 2021, arXiv 2101.06983).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops, tree

from hdc_keras.step.loops import repeat
from hdc_keras.step.network import ContrastModel, Features, NetworkValues, Tensor, Values, Videos
from hdc_keras.step.pullbacks import pullback
from hdc_keras.step.replicas import ReplicaGroup


class ObjectiveGradients(NamedTuple):
    """Loss, gradients and new state of the objective for the whole batch.

    Attributes:
        loss: scalar.
        monitored: (names,), see `Objective`.
        by_features: gradient with respect to this replica's features of the online views.
        by_weights: gradient with respect to the objective's trainable variables.
        state: new values of the objective's other variables.
    """

    loss: Tensor
    monitored: Tensor
    by_features: Features
    by_weights: Values
    state: Values


class StepGradients(NamedTuple):
    """The results of one replica, before the replicas are combined.

    Attributes:
        loss: scalar, of the whole batch.
        monitored: (names,), see `Objective`.
        backbone: gradient of this replica's videos, `None` for variables without one.
        objective: gradient of the whole batch.
        backbone_state: new statistics of batch norm.
        objective_state: new state of the objective.
    """

    loss: Tensor
    monitored: Tensor
    backbone: list[Tensor | None]
    objective: list[Tensor | None]
    backbone_state: Values
    objective_state: Values


class StepInputs(NamedTuple):
    """What the gradient of a step is computed from.

    Attributes:
        model: the model.
        replicas: the replicas that share the batch.
        values: the values of the model's variables.
        videos: this replica's part of the batch.
        order: (batch,) the video of the whole batch that the positives show at each place; `None` for the own one.
        loss_scale: factor on all gradients, for mixed_float16.
    """

    model: ContrastModel
    replicas: ReplicaGroup
    values: NetworkValues
    videos: Videos
    order: Tensor | None
    loss_scale: Tensor


def step_gradients(inputs: StepInputs) -> StepGradients:
    """Compute the gradient of this replica's windows, as `model.step_options` prescribes."""
    options = inputs.model.step_options
    if options.micro_batches == 1:
        return _whole_batch(inputs)
    videos = map_tensors(lambda x: _split(x, options.micro_batches), inputs.videos)
    by_micro_batches = _cached if options.accumulate == "cached" else _plain
    return by_micro_batches(inputs._replace(videos=videos))


def objective_gradients(inputs: StepInputs, features: Features) -> ObjectiveGradients:
    """Evaluate the objective on the features of all replicas and differentiate it."""
    model, values = inputs.model, inputs.values
    global_features = inputs.replicas.gather(features, axis=1)

    def loss_of(arguments: tuple[Values, Features]) -> tuple[Tensor, tuple[Tensor, Values]]:
        weights, features = arguments
        if inputs.order is not None:
            features = _with_own_positives(model, features, inputs.order)
        output, state = model.objective.stateless_call(weights, values.objective_state, features, training=True)
        return output.loss, (output.monitored, state)

    loss, (monitored, state), pull = pullback(loss_of, (values.objective, global_features))
    by_weights, by_features = pull(ops.cast(inputs.loss_scale, loss.dtype))
    # A level that the objective ignores has no gradient.
    by_features = {
        level: ops.zeros_like(value) if by_features[level] is None else by_features[level]
        for level, value in global_features.items()
    }
    by_features = {level: value[: len(model.online_views)] for level, value in by_features.items()}
    return ObjectiveGradients(loss, monitored, inputs.replicas.local_part(by_features, axis=1), by_weights, state)


def _with_keys(inputs: StepInputs, features: Features, videos: Videos) -> Features:
    """Append to the features of the online views those of the keys, if there are any."""
    model = inputs.model
    if model.keys_function is None:
        return features
    keys = model.keys_function(inputs.values.averages, videos)
    return {level: ops.concatenate([x, keys[level]]) for level, x in features.items()}


def _whole_batch(inputs: StepInputs) -> StepGradients:
    model, values = inputs.model, inputs.values
    features, backbone_state, pull = pullback(
        lambda weights: model.features_function(weights, values.backbone_state, inputs.videos), values.backbone
    )
    objective = objective_gradients(inputs, _with_keys(inputs, features, inputs.videos))
    return StepGradients(
        objective.loss,
        objective.monitored,
        pull(objective.by_features),
        objective.by_weights,
        backbone_state,
        objective.state,
    )


def _plain(inputs: StepInputs) -> StepGradients:
    """Treat each (piece, ...) micro-batch as a separate batch, and average losses, gradients and the objective's state.

    Each piece starts from the objective's state at the beginning of the step, so that moving averages move once.
    """
    model, values = inputs.model, inputs.values
    count = model.step_options.micro_batches

    def add(piece: Tensor, total: StepGradients) -> StepGradients:
        found = _whole_batch(
            inputs._replace(
                videos=_piece(inputs.videos, piece),
                order=None if inputs.order is None else ops.take(inputs.order, piece, axis=0),
                values=values._replace(backbone_state=total.backbone_state),
            )
        )
        return StepGradients(
            loss=total.loss + found.loss / count,
            monitored=total.monitored + found.monitored / count,
            backbone=_sums(total.backbone, [g if g is None else g / count for g in found.backbone]),
            objective=_sums(total.objective, [g if g is None else g / count for g in found.objective]),
            backbone_state=found.backbone_state,
            objective_state=[
                old + new / count if keras.backend.is_float_dtype(new.dtype) else new
                for old, new in zip(total.objective_state, found.objective_state, strict=True)
            ],
        )

    nothing = StepGradients(
        loss=ops.zeros(()),
        monitored=ops.zeros((len(model.objective.monitored_names),)),
        backbone=[ops.zeros_like(value) for value in values.backbone],
        objective=[ops.zeros_like(value) for value in values.objective],
        backbone_state=values.backbone_state,
        objective_state=[ops.zeros_like(value) for value in values.objective_state],
    )
    return repeat(count, add, nothing, unrolled=inputs.replicas.count > 1)


def _cached(inputs: StepInputs) -> StepGradients:
    """Compute the features of every (piece, ...) micro-batch, then the gradient with respect to all features. Then run
    each micro-batch again, to carry its part of that gradient back through the backbone."""
    model, values = inputs.model, inputs.values
    count = model.step_options.micro_batches

    def features_of(weights: Values, state: Values, piece: Tensor) -> tuple[Features, Values]:
        return model.features_function(weights, state, _piece(inputs.videos, piece))

    views, size = len(model.view_generator.view_names), ops.shape(inputs.videos.windows)[1]
    buffers = {level: ops.zeros((count, views, size, width)) for level, width in model.feature_widths.items()}

    def forward(piece: Tensor, carried: tuple[Features, Values]) -> tuple[Features, Values]:
        buffers, state = carried
        features, state = features_of(values.backbone, state, piece)
        features = _with_keys(inputs, features, _piece(inputs.videos, piece))
        written = {name: _with_row(buffer, piece, features[name]) for name, buffer in buffers.items()}
        return written, state

    buffers, backbone_state = repeat(count, forward, (buffers, values.backbone_state))
    features = tree.map_structure(_joined_pieces, buffers)
    objective = objective_gradients(inputs, features)
    parts = tree.map_structure(lambda x: _split(x, count, axis=1), objective.by_features)

    def backward(piece: Tensor, sums: Values) -> Values:
        _, _, pull = pullback(lambda weights: features_of(weights, values.backbone_state, piece), values.backbone)
        return _sums(sums, pull(tree.map_structure(lambda x: ops.take(x, piece, axis=0), parts)))

    backbone = repeat(count, backward, [ops.zeros_like(value) for value in values.backbone])
    return StepGradients(
        objective.loss, objective.monitored, backbone, objective.by_weights, backbone_state, objective.state
    )


def _sums(totals: list[Tensor | None], added: list[Tensor | None]) -> list[Tensor | None]:
    return [total if more is None else total + more for total, more in zip(totals, added, strict=True)]


def map_tensors(function: Callable[[Tensor], Tensor], nested: Any) -> Any:
    """Apply a function to nested tensors, among which there may be `None`."""
    return tree.map_structure(lambda x: None if x is None else function(x), nested)


def _piece(videos: Videos, piece: Tensor) -> Videos:
    return map_tensors(lambda x: ops.take(x, piece, axis=0), videos)


def _split(x: Tensor, count: int, axis: int = 0) -> Tensor:
    """Deal `axis` out to `count` pieces in turn and move them to the front: (count, ...).

    Consecutive places go to different pieces, so that each device of JAX keeps a part of every piece.
    """
    shape = list(ops.shape(x))
    pieces = ops.reshape(x, (*shape[:axis], shape[axis] // count, count, *shape[axis + 1 :]))
    return ops.moveaxis(pieces, axis + 1, 0)


def _joined_pieces(x: Tensor) -> Tensor:
    """(pieces, views, size, channels) -> (views, size * pieces, channels), the inverse of `_split`."""
    count, views, size, width = ops.shape(x)
    return ops.reshape(ops.transpose(x, (1, 2, 0, 3)), (views, size * count, width))


def _with_own_positives(model: ContrastModel, features: Features, order: Tensor) -> Features:
    """Move the features of the positives, (views, batch, channels), from the places of `order` to their own videos."""
    names = model.view_generator.view_names
    is_positive = np.isin(names, list(model.view_generator.positives.values()))[:, None, None]
    own_place = ops.argsort(order)
    return {level: ops.where(is_positive, ops.take(x, own_place, axis=1), x) for level, x in features.items()}


def _with_row(buffer: Tensor, row: Tensor, value: Tensor) -> Tensor:
    """A copy of `buffer` with `value` in one row."""
    return ops.slice_update(buffer, (row,) + (0,) * (len(buffer.shape) - 1), value[None])
