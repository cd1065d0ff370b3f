"""The end of a step: check the gradients of all replicas, clip them for the optimizer, and commit the new state.

If the loss or a gradient is non-finite, moving averages keep their values, and the optimizer gets zero gradients. A
loss-scaling optimizer gets infinity for a non-finite gradient instead, and skips the step itself.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from hdc_keras.step.gradients import StepGradients
from hdc_keras.step.network import ContrastModel, Tensor, Values
from hdc_keras.step.replicas import ReplicaGroup


class Verdict(NamedTuple):
    """Whether a step may be taken; the same on every replica.

    Attributes:
        gradient_is_finite: whether the gradient of every replica is finite.
        is_good: whether the step's state is committed. With a loss-scaling optimizer this depends only on the
            loss, because gradients are expected to overflow while it searches for its scale.
    """

    gradient_is_finite: Tensor
    is_good: Tensor


def finish_step(
    model: ContrastModel,
    replicas: ReplicaGroup,
    gradients: StepGradients,
    averages: Values,
    loss_scale: Tensor,
    batch: Tensor,
) -> list[Tensor | None]:
    """Commit the step's state, update counters and means, and return gradients for the optimizer.

    Args:
        model: the model.
        replicas: the replicas that share the batch.
        gradients: the results of this replica.
        averages: new values of the averages of weights.
        loss_scale: factor by which the gradients are scaled.
        batch: number of videos in the whole batch.

    Returns:
        Gradients in the order of `model.trainable_variables`, for the optimizer to add up over the replicas.
    """
    # The optimizer adds up the gradients of all replicas. Each has the objective's gradient of the whole batch, so each
    # contributes an equal share of it.
    gradients = gradients._replace(objective=[_scaled(g, 1.0 / replicas.count) for g in gradients.objective])
    verdict = check_finite(gradients, replicas, _scales_loss(model.optimizer))
    factor = clipping_factor(gradients, replicas, model.step_options.clip_norm, loss_scale)
    commit_state(model, replicas, gradients, averages, verdict)
    track(model, gradients, verdict, batch)
    return optimizer_gradients(model, gradients, verdict, factor)


def check_finite(gradients: StepGradients, replicas: ReplicaGroup, scales_loss: bool) -> Verdict:
    """Let all replicas agree on whether the step is finite."""
    finite = _all_finite(_present(gradients))
    non_finite_replicas = replicas.sum([1.0 - ops.cast(finite, "float32")])[0]
    gradient_is_finite = non_finite_replicas < 0.5
    is_good = ops.isfinite(gradients.loss)
    if not scales_loss:
        is_good = ops.logical_and(is_good, gradient_is_finite)
    return Verdict(gradient_is_finite, is_good)


def clipping_factor(
    gradients: StepGradients, replicas: ReplicaGroup, clip_norm: float | None, loss_scale: Tensor
) -> Tensor | None:
    """The factor that brings the global norm of the summed gradient down to `clip_norm`; `None` without a limit."""
    if clip_norm is None:
        return None
    total = replicas.sum(_present(gradients))
    norm = ops.sqrt(sum(ops.sum(ops.square(ops.cast(g, "float32"))) for g in total)) / loss_scale
    return ops.minimum(1.0, clip_norm / ops.maximum(norm, 1e-12))


def optimizer_gradients(
    model: ContrastModel, gradients: StepGradients, verdict: Verdict, factor: Tensor | None
) -> list[Tensor | None]:
    """Clipped gradients in the order of `model.trainable_variables`; all are replaced if the step is not finite."""
    is_finite = ops.logical_and(verdict.is_good, verdict.gradient_is_finite)
    # A loss-scaling optimizer looks for non-finite gradients itself, on each replica, and then skips the step.
    zero, infinity = ops.zeros(()), ops.full((), float("inf"))
    replacement = ops.where(verdict.gradient_is_finite, zero, infinity) if _scales_loss(model.optimizer) else zero
    pairs = [
        *zip(model.pyramid.trainable_variables, gradients.backbone, strict=True),
        *zip(model.objective.trainable_variables, gradients.objective, strict=True),
    ]
    by_variable = {
        id(variable): None
        if g is None
        else ops.where(is_finite, g if factor is None else g * ops.cast(factor, g.dtype), replacement)
        for variable, g in pairs
    }
    return [by_variable.get(id(variable)) for variable in model.trainable_variables]


def commit_state(
    model: ContrastModel, replicas: ReplicaGroup, gradients: StepGradients, averages: Values, verdict: Verdict
) -> None:
    """If the step is good, write the new state of the backbone, averaged over replicas, of the objective, and of the
    averages of weights."""
    state = list(gradients.backbone_state)
    floats = [i for i, value in enumerate(state) if keras.backend.is_float_dtype(value.dtype)]
    for i, mean in zip(floats, replicas.mean([state[i] for i in floats]), strict=True):
        state[i] = mean
    _assign_where(verdict.is_good, model.pyramid.non_trainable_variables, state)
    _assign_where(verdict.is_good, model.objective.non_trainable_variables, gradients.objective_state)
    if model.averages:
        _assign_where(verdict.is_good, model.averages.variables, averages)


def track(model: ContrastModel, gradients: StepGradients, verdict: Verdict, batch: Tensor) -> None:
    """Count the step, and add its loss and monitored values to the means of the epoch if it is good."""
    model.step_record.update(verdict.is_good, gradients.monitored)
    weight = ops.cast(batch, "float32") * ops.cast(verdict.is_good, "float32")
    model.objective.track(ops.where(verdict.is_good, gradients.monitored, 0.0), weight)
    model.loss_tracker.update_state(ops.where(verdict.is_good, gradients.loss, 0.0), sample_weight=weight)


def _all_finite(tensors: Values) -> Tensor:
    if keras.backend.backend() == "torch":
        import torch

        # One kernel for all tensors: the largest absolute value of each, which is not finite if any value is not.
        return torch.stack(torch._foreach_norm(tensors, float("inf"))).isfinite().all()
    return ops.all(ops.stack([ops.all(ops.isfinite(x)) for x in tensors]))


def _present(gradients: StepGradients) -> Values:
    return [g for g in [*gradients.backbone, *gradients.objective] if g is not None]


def _scales_loss(optimizer: Any) -> bool:
    """Whether the optimizer is a `LossScaleOptimizer`, which mixed_float16 uses."""
    return hasattr(optimizer, "inner_optimizer")


def _scaled(value: Tensor | None, factor: float) -> Tensor | None:
    return value if value is None or factor == 1.0 else value * factor


def _assign_where(condition: Tensor, variables: Sequence[Any], values: Values) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(ops.where(condition, value, variable.value))
