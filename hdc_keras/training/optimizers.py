"""Optimizers and the learning rate schedule."""

import math
from typing import Any

import keras
from keras import ops

from hdc_keras.config import Length, TrainConfig


@keras.saving.register_keras_serializable(package="hdc_keras")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to the peak, then cosine decay to 0 (SGDR without restarts, arXiv 1608.03983).

    Args:
        peak: highest learning rate, reached at the end of the warm-up.
        warmup_steps: number of steps of the linear part.
        total_steps: number of steps of the whole schedule, including the warm-up.
    """

    def __init__(self, peak: float, warmup_steps: int, total_steps: int):
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps

    def __call__(self, step: Any) -> Any:
        """Learning rate of a step, counted from 0."""
        step = ops.cast(step, "float32")
        # + 1, so that the first step does not have a learning rate of 0.
        warmup = (step + 1.0) / max(1, self.warmup_steps)
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        cosine = 0.5 * (1.0 + ops.cos(math.pi * ops.clip(progress, 0.0, 1.0)))
        return self.peak * ops.where(step < self.warmup_steps, warmup, cosine)

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {"peak": self.peak, "warmup_steps": self.warmup_steps, "total_steps": self.total_steps}


@keras.saving.register_keras_serializable(package="hdc_keras")
class PyTorchSGD(keras.optimizers.Optimizer):
    """SGD as in PyTorch, whose numbers published recipes mean.

    For each variable w with gradient g: `g += weight_decay * w` (kernels only), `v = momentum * v + g`, and
    `w -= learning_rate * v`, or with Nesterov momentum `w -= learning_rate * (g + momentum * v)`.

    Keras' SGD differs in two ways. Its weight decay is not part of the gradient, so momentum does not add it up: at
    momentum 0.9 it is 10 times weaker. Its velocity contains the learning rate, so a lower rate takes effect some
    steps later.

    Args:
        learning_rate: number or schedule.
        momentum: momentum of the velocity v.
        nesterov: whether to use Nesterov momentum.
        weight_decay: L2 penalty of kernels. Variables with a single axis (biases, norms) have none.
        name: name of the optimizer.
        **kwargs: further arguments of `keras.optimizers.Optimizer`.
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        name: str = "sgd",
        **kwargs: Any,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum
        self.nesterov = nesterov
        self.decay = weight_decay

    def build(self, variables: list[Any]) -> None:
        """Create a velocity for each variable."""
        if self.built:
            return
        super().build(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable and its velocity."""
        rate, gradient = ops.cast(learning_rate, variable.dtype), ops.cast(gradient, variable.dtype)
        velocity = self._velocities[self._get_variable_index(variable)]
        if self.decay and len(variable.shape) > 1:
            gradient = gradient + self.decay * variable
        self.assign(velocity, self.momentum * velocity + gradient)
        self.assign_sub(variable, rate * (gradient + self.momentum * velocity if self.nesterov else velocity))

    def _backend_update_step(self, gradients: Any, variables: Any, learning_rate: Any) -> None:
        """On PyTorch, update all variables with a few kernels, and without waiting for the learning rate."""
        if keras.backend.backend() != "torch":
            super()._backend_update_step(gradients, variables, learning_rate)
            return
        import torch

        with torch.no_grad():
            weights = [v.value for v in variables]
            velocities = [self._velocities[self._get_variable_index(v)].value for v in variables]
            gradients = [g.to(w.dtype) for g, w in zip(gradients, weights, strict=True)]
            if self.decay:
                kernels = [number for number, w in enumerate(weights) if w.ndim > 1]
                pairs = [gradients[number] for number in kernels], [weights[number] for number in kernels]
                for number, decayed in zip(kernels, torch._foreach_add(*pairs, alpha=self.decay), strict=True):
                    gradients[number] = decayed
            torch._foreach_mul_(velocities, self.momentum)
            torch._foreach_add_(velocities, gradients)
            change = velocities
            if self.nesterov:
                change = torch._foreach_add(gradients, velocities, alpha=self.momentum)
            torch._foreach_sub_(weights, torch._foreach_mul(change, ops.convert_to_tensor(learning_rate)))

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        arguments = {"momentum": self.momentum, "nesterov": self.nesterov, "weight_decay": self.decay}
        return {**super().get_config(), **arguments}


@keras.saving.register_keras_serializable(package="hdc_keras")
class LARS(keras.optimizers.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888, algorithm 1), for large batches.

    For each kernel w with gradient g: `v = momentum * v + learning_rate * local * (g + weight_decay * w)`, `w -= v`,
    with `local = trust * |w| / (|g| + weight_decay * |w|)`. Biases and norm parameters (variables with a single axis)
    have `local = 1` and no decay, as in SimCLR (arXiv 2002.05709).

    Args:
        learning_rate: number or schedule; the paper's global learning rate.
        momentum: momentum of the velocity v.
        weight_decay: the paper's beta; added to the gradient, not decoupled.
        trust: the paper's eta.
        name: name of the optimizer.
        **kwargs: further arguments of `keras.optimizers.Optimizer`.
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        trust: float = 1e-3,
        name: str = "lars",
        **kwargs: Any,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum
        self.decay = weight_decay
        self.trust = trust

    def build(self, variables: list[Any]) -> None:
        """Create a velocity for each variable."""
        if self.built:
            return
        super().build(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable and its velocity."""
        rate, gradient = ops.cast(learning_rate, variable.dtype), ops.cast(gradient, variable.dtype)
        velocity = self._velocities[self._get_variable_index(variable)]
        if len(variable.shape) > 1:
            weight_norm = ops.sqrt(ops.sum(ops.square(variable)))
            update_norm = ops.sqrt(ops.sum(ops.square(gradient))) + self.decay * weight_norm
            # If either norm is zero, their ratio is not meaningful.
            has_ratio = ops.logical_and(weight_norm > 0, update_norm > 0)
            local = ops.where(has_ratio, self.trust * weight_norm / ops.where(has_ratio, update_norm, 1.0), 1.0)
            gradient = local * (gradient + self.decay * variable)
        self.assign(velocity, self.momentum * velocity + rate * gradient)
        self.assign_sub(variable, velocity)

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        arguments = {"momentum": self.momentum, "weight_decay": self.decay, "trust": self.trust}
        return {**super().get_config(), **arguments}


# What `train.weight_decay` is if it is empty: PyTorch's value in most video recipes (as in Tran et al. 2018's code),
# AdamW's in video transformers (Fan et al. 2021, arXiv 2104.11227), and SimCLR's with LARS (arXiv 2002.05709).
_WEIGHT_DECAY = {"sgd": 1e-4, "adamw": 0.05, "lars": 1e-6}


def build_optimizer(config: TrainConfig, length: Length) -> keras.optimizers.Optimizer:
    """The optimizer of `train`, with its schedule. Weight decay does not apply to biases and batch norm."""
    schedule = WarmupCosine(
        config.peak_learning_rate,
        # Otherwise a run shorter than the warm-up would never reach its peak learning rate.
        round(min(config.warmup_epochs * length.steps_per_epoch, length.steps / 2)),
        length.steps,
    )
    decay = _WEIGHT_DECAY[config.optimizer] if config.weight_decay is None else config.weight_decay
    if config.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=decay)
        exclude_from_decay(optimizer)
        return optimizer
    if config.optimizer == "lars":
        return LARS(schedule, weight_decay=decay)
    return PyTorchSGD(schedule, momentum=0.9, nesterov=True, weight_decay=decay)


def exclude_from_decay(optimizer: keras.optimizers.Optimizer) -> None:
    """Exclude biases and batch norm from the weight decay of Keras' optimizers (AdamW, and SGD in runs of 0.1.0). Keras
    does not save this setting, so call it again after loading a model."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # mixed_float16 wraps the optimizer
    if optimizer.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
