"""The gradient of a step, computed for the whole batch at once or in micro-batches.

The computation is cut at its narrowest point, the pooled features of each level. Before the cut, no video depends on
any other, so each replica and each micro-batch computes the features of its own videos. After the cut everything is
small: each replica gathers the features of the whole batch and computes the same objective for all of it. Each replica
and micro-batch then carries the gradient with respect to its features back through the backbone. With micro-batches
this is gradient caching (GradCache: Gao et al. 2021, arXiv 2101.06983).
"""

from typing import Any, NamedTuple

from keras import ops, tree

from hdc_keras.step.loops import after, repeat
from hdc_keras.step.network import ContrastModel, Features, NetworkValues, Tensor, Values
from hdc_keras.step.pullbacks import pullback
from hdc_keras.step.replicas import ReplicaGroup


class ObjectiveGradients(NamedTuple):
    """Loss, gradients and new state of the objective for the whole batch.

    Attributes:
        loss: scalar.
        monitored: (names,), see `Objective`.
        by_features: gradient with respect to this replica's features.
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
        windows: (batch, 2, time, height, width, 3), this replica's part of the batch. With micro-batches,
            (pieces, batch / pieces, 2, ...).
        draws: the augmentation of these windows, as `ViewGenerator.draw` returns it.
        loss_scale: factor on all gradients, for mixed_float16.
    """

    model: ContrastModel
    replicas: ReplicaGroup
    values: NetworkValues
    windows: Tensor
    draws: Any
    loss_scale: Tensor


def step_gradients(inputs: StepInputs) -> StepGradients:
    """Compute the gradient of this replica's windows, as `model.step_options` prescribes."""
    options = inputs.model.step_options
    if options.micro_batches == 1:
        return _whole_batch(inputs)
    windows, draws = tree.map_structure(lambda x: _split(x, options.micro_batches), (inputs.windows, inputs.draws))
    by_micro_batches = _cached if options.accumulate == "cached" else _plain
    return by_micro_batches(inputs._replace(windows=windows, draws=draws))


def objective_gradients(inputs: StepInputs, features: Features) -> ObjectiveGradients:
    """Evaluate the objective on the features of all replicas and differentiate it."""
    model, values = inputs.model, inputs.values
    global_features = inputs.replicas.gather(features, axis=1)

    def loss_of(arguments: tuple[Values, Features]) -> tuple[Tensor, tuple[Tensor, Values]]:
        weights, features = arguments
        output, state = model.objective.stateless_call(weights, values.objective_state, features, training=True)
        return output.loss, (output.monitored, state)

    loss, (monitored, state), pull = pullback(loss_of, (values.objective, global_features))
    by_weights, by_features = pull(ops.cast(inputs.loss_scale, loss.dtype))
    # A level that the objective ignores has no gradient.
    by_features = {
        level: ops.zeros_like(value) if by_features[level] is None else by_features[level]
        for level, value in global_features.items()
    }
    return ObjectiveGradients(loss, monitored, inputs.replicas.local_part(by_features, axis=1), by_weights, state)


def _whole_batch(inputs: StepInputs) -> StepGradients:
    model, values = inputs.model, inputs.values
    features, backbone_state, pull = pullback(
        lambda weights: model.features_function(weights, values.backbone_state, inputs.windows, inputs.draws),
        values.backbone,
    )
    objective = objective_gradients(inputs, features)
    return StepGradients(
        objective.loss,
        objective.monitored,
        pull(objective.by_features),
        objective.by_weights,
        backbone_state,
        objective.state,
    )


def _plain(inputs: StepInputs) -> StepGradients:
    """Treat each (piece, ...) micro-batch as a separate batch, and average losses and gradients."""
    count, values = inputs.model.step_options.micro_batches, inputs.values
    total: StepGradients | None = None
    for piece in range(count):
        # Without this, TensorFlow may start the next piece before it has freed the memory of this one.
        with after(tree.flatten(total)):
            windows, draws = tree.map_structure(
                lambda x, piece=piece: ops.copy(x[piece]), (inputs.windows, inputs.draws)
            )
            found = _whole_batch(inputs._replace(values=values, windows=windows, draws=draws))
        values = values._replace(backbone_state=found.backbone_state, objective_state=found.objective_state)
        total = _added(total, found) if total else found
    assert total is not None
    return total._replace(
        loss=total.loss / count,
        monitored=total.monitored / count,
        backbone=_divided(total.backbone, count),
        objective=_divided(total.objective, count),
    )


def _cached(inputs: StepInputs) -> StepGradients:
    """Compute the features of every (piece, ...) micro-batch, then the gradient with respect to all features. Then run
    each micro-batch again, to carry its part of that gradient back through the backbone."""
    model, values = inputs.model, inputs.values
    count = model.step_options.micro_batches

    def features_of(weights: Values, state: Values, piece: Tensor) -> tuple[Features, Values]:
        windows, draws = tree.map_structure(lambda x: ops.take(x, piece, axis=0), (inputs.windows, inputs.draws))
        return model.features_function(weights, state, windows, draws)

    views, size = len(model.view_generator.view_names), ops.shape(inputs.windows)[1]
    buffers = {level: ops.zeros((count, views, size, width)) for level, width in model.feature_widths.items()}

    def forward(piece: Tensor, carried: tuple[Features, Values]) -> tuple[Features, Values]:
        buffers, state = carried
        features, state = features_of(values.backbone, state, piece)
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


def _added(total: StepGradients, found: StepGradients) -> StepGradients:
    """Add losses and gradients, and keep the newer state."""
    return found._replace(
        loss=total.loss + found.loss,
        monitored=total.monitored + found.monitored,
        backbone=_sums(total.backbone, found.backbone),
        objective=_sums(total.objective, found.objective),
    )


def _sums(totals: list[Tensor | None], added: list[Tensor | None]) -> list[Tensor | None]:
    return [total if more is None else total + more for total, more in zip(totals, added, strict=True)]


def _divided(values: list[Tensor | None], count: int) -> list[Tensor | None]:
    return [None if value is None else value / count for value in values]


def _split(x: Tensor, count: int, axis: int = 0) -> Tensor:
    """Cut `axis` into `count` pieces and move them to the front: (count, ...)."""
    shape = list(ops.shape(x))
    pieces = ops.reshape(x, (*shape[:axis], count, shape[axis] // count, *shape[axis + 1 :]))
    return ops.moveaxis(pieces, axis, 0)


def _joined_pieces(x: Tensor) -> Tensor:
    """(pieces, views, size, channels) -> (views, pieces * size, channels)."""
    count, views, size, width = ops.shape(x)
    return ops.reshape(ops.moveaxis(x, 0, 1), (views, count * size, width))


def _with_row(buffer: Tensor, row: Tensor, value: Tensor) -> Tensor:
    """A copy of `buffer` with `value` in one row."""
    return ops.slice_update(buffer, (row,) + (0,) * (len(buffer.shape) - 1), value[None])
