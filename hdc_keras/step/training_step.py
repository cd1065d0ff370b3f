"""The training step of `HDC`, on every backend: draw, differentiate, combine the replicas, update.

`gradients` splits the batch and computes the gradients of one replica. `update` checks that they are finite, clips them
and commits the step.
"""

from typing import Any

import keras
from keras import ops

from hdc_keras.devices import move_to_device, uses_cuda, without_waiting_for_constants
from hdc_keras.step.gradients import StepInputs, step_gradients
from hdc_keras.step.inputs import require_batch, require_windows_only
from hdc_keras.step.network import ContrastModel, NetworkValues, Tensor, Values, Videos
from hdc_keras.step.pullbacks import without_autograd
from hdc_keras.step.replicas import ReplicaGroup, replicas_of_step
from hdc_keras.step.shuffling import shuffles_statistics, with_shuffled_positives
from hdc_keras.step.update import finish_step


def train_step(model: ContrastModel, *arguments: Any) -> Any:
    """Replaces Keras' `train_step`, with the same arguments and results, which depend on the active backend.

    The logs hold only the mean loss of the epoch so far, because Keras copies each of them to the host after each step.
    On PyTorch with a GPU, it is that of the step before, so that no step waits for the GPU.
    """
    if keras.backend.backend() == "jax":
        return _jax_train_step(model, *arguments)
    replicas = replicas_of_step()
    windows = _windows_of(*arguments)
    if uses_cuda():
        import torch

        windows = move_to_device(torch.as_tensor(windows))
    with without_autograd(), without_waiting_for_constants():
        gradients = _all_but_the_optimizer(model, replicas, windows)
        # Stages after the deepest level in use have no gradient.
        pairs = [(g, v) for g, v in zip(gradients, model.trainable_variables, strict=True) if g is not None]
        gradients, variables = map(list, zip(*pairs, strict=True))
        model.optimizer.apply(gradients if replicas.optimizer_sums else replicas.sum(gradients), variables)
        loss = model.loss_tracker.result()
    if uses_cuda():
        return {"loss": model.loss_on_host(loss)}
    return {"loss": loss[None] if replicas.returns_vectors else loss}


def _jax_train_step(
    model: ContrastModel, state: tuple[Values, ...], data: Any
) -> tuple[dict[str, Tensor], tuple[Values, ...]]:
    trainable, _, optimizer, _ = state
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    pairs = [pair for kind, values in zip(variables, state, strict=True) for pair in zip(kind, values, strict=True)]
    with keras.StatelessScope(state_mapping=pairs) as scope:
        gradients = _all_but_the_optimizer(model, replicas_of_step(), _windows_of(data))
        logs = {"loss": model.loss_tracker.result()}
    trainable, optimizer = model.optimizer.stateless_apply(optimizer, gradients, trainable)
    non_trainable, metrics = (
        [scope.get_current_value(variable) for variable in kind]
        for kind in (model.non_trainable_variables, model.metrics_variables)
    )
    return logs, (trainable, non_trainable, optimizer, metrics)


def _all_but_the_optimizer(model: ContrastModel, replicas: ReplicaGroup, windows: Tensor) -> list[Tensor | None]:
    """Take a step, except for the update of the weights: statistics, metrics and random state are updated.

    Returns:
        Gradients in the order of `model.trainable_variables`.
    """
    _refuse_what_replicas_cannot_share(model, replicas)
    batch = ops.shape(windows)[0] * replicas.count
    require_batch(batch, model.step_options)
    # Drawn for the whole batch on every replica, so that results do not depend on the number of replicas.
    draws = model.view_generator.draw(batch, windows.shape[2:5])
    videos, order = Videos(windows, replicas.local_part(draws)), None
    if shuffles_statistics(model, replicas):
        videos, order = with_shuffled_positives(model, replicas, videos, draws)
    loss_scale = model.optimizer.scale_loss(ops.ones(()))
    values = NetworkValues.of(model)
    inputs = StepInputs(model, replicas, values, videos, order, loss_scale)
    return finish_step(model, replicas, step_gradients(inputs), values.averages, loss_scale, batch)


def _windows_of(data: Any) -> Tensor:
    windows, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    require_windows_only(labels, weights)
    return windows


def _refuse_what_replicas_cannot_share(model: ContrastModel, replicas: ReplicaGroup) -> None:
    if replicas.count == 1:
        return
    options = model.step_options
    inner: Any = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if inner.clipnorm or inner.global_clipnorm or inner.clipvalue:
        raise ValueError(
            "with several replicas, the optimizer would clip the gradient of each replica before they are summed. Pass "
            "`clip_norm` to `HDC.compile` instead, which clips the summed gradient."
        )
    synchronised = any(getattr(layer, "synchronized", False) for layer in model.pyramid._flatten_layers())
    if synchronised and (options.compile_features or options.micro_batches > 1):
        raise ValueError(
            "synchronised batch norm communicates between replicas inside the backbone, which is not possible with "
            "XLA or micro-batches. Use local batch norm, or `jit_compile=False` and `micro_batches=1`."
        )
