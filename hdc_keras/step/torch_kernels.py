"""PyTorch's own kernels for the layers of a backbone, when it is trained on PyTorch.

Keras 3.15 copies the input of each 3D convolution into two other memory layouts, and composes batch norm of elementary
operations in float32, which keep several activations for the backward pass. Here the layers of the same Keras model
run as a PyTorch user would write them: channels-first tensors in `channels_last_3d` memory, native batch norm, padding
inside the convolution, ReLU in place. Results are those of Keras to rounding (tests/step/test_torch_kernels.py).
"""

import functools
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers

Tensor = Any
Values = list[Tensor]
Operation = Callable[..., Tensor]

_CHANNELS_FIRST, _CHANNELS_LAST = (0, 4, 1, 2, 3), (0, 2, 3, 4, 1)


class TorchNetwork:
    """Runs a functional model of 3D layers in training mode, like `stateless_call(..., training=True)`.

    A layer without a kernel of its own below is called as it is.

    Args:
        network: a functional model from clips (batch, time, height, width, channels) to feature maps.
    """

    def __init__(self, network: keras.Model):
        self.network = network
        self._operations: dict[int, Operation] = {}
        nodes = [node for depth in network._nodes_by_depth.values() for node in depth if not node.is_input]
        producers = {id(tensor): node.operation for node in nodes for tensor in node.outputs}
        uses = Counter(id(tensor) for tensor in network.outputs)
        uses.update(id(tensor) for node in nodes for tensor in node.input_tensors)
        calls = Counter(id(node.operation) for node in nodes)
        for node in nodes:
            layer, before = node.operation, producers.get(id(node.input_tensors[0]))
            # Whether nothing else reads the input, so that it can be overwritten or need not exist.
            is_sole_reader = calls[id(layer)] == 1 and uses[id(node.input_tensors[0])] == 1
            if isinstance(before, layers.ZeroPadding3D) and is_sole_reader and _is_convolution(layer):
                padding = _symmetric_padding(before)
                if padding and layer.padding == "valid" and calls[id(before)] == 1:
                    self._operations[id(before)] = lambda x: x
                    self._operations[id(layer)] = _convolution(layer, padding)
                    continue
            # These do not need their own output for the backward pass.
            writable = isinstance(before, layers.BatchNormalization | layers.Add | layers.Conv3D)
            self._operations.setdefault(id(layer), _kernel(layer, in_place=is_sole_reader and writable))

    def __call__(self, weights: Values, state: Values, clips: Tensor) -> tuple[Any, Values]:
        """Return the outputs of the network and the new values of its non-trainable variables.

        Args:
            weights: values of the trainable variables.
            state: values of the non-trainable variables.
            clips: input of the network, channels last.
        """
        variables = [*self.network.trainable_variables, *self.network.non_trainable_variables]
        mapping = list(zip(variables, [*weights, *state], strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            outputs = self.network._run_through_graph(
                clips.permute(_CHANNELS_FIRST), operation_fn=lambda operation: self._operations[id(operation)]
            )
        state = [scope.get_current_value(variable) for variable in self.network.non_trainable_variables]
        return keras.tree.map_structure(lambda x: x.permute(_CHANNELS_LAST), outputs), state


def _kernel(layer: Any, in_place: bool) -> Operation:
    """The fastest equivalent of a layer for (batch, channels, time, height, width)."""
    if _is_convolution(layer):
        return _convolution(layer, [size // 2 if layer.padding == "same" else 0 for size in layer.kernel_size])
    if type(layer) is layers.BatchNormalization and not (layer.renorm or layer.synchronized):
        return _batch_norm(layer)
    if type(layer) is layers.ReLU and layer.max_value is None and not layer.negative_slope and not layer.threshold:
        return _relu(in_place)
    if type(layer) is layers.Add:
        return lambda tensors: functools.reduce(operator.add, tensors)
    if type(layer) is layers.ZeroPadding3D and (padding := _symmetric_padding(layer)):
        return _padding(*padding)
    if type(layer) is layers.MaxPooling3D and layer.padding == "valid" and layer.data_format == "channels_last":
        return _max_pool(layer)
    return _channels_last(layer)


def _channels_last(layer: Any) -> Operation:
    """A layer as Keras runs it, between two changes of the order of axes, which copy nothing."""
    takes_training = "training" in getattr(layer, "_call_context_args", {})

    def run(*arguments: Any, **options: Any) -> Tensor:
        arguments = keras.tree.map_structure(_moved(_CHANNELS_LAST), arguments)
        options = options | ({"training": True} if takes_training else {})
        return keras.tree.map_structure(_moved(_CHANNELS_FIRST), layer(*arguments, **options))

    return run


def _moved(order: tuple[int, ...]) -> Callable[[Any], Any]:
    return lambda x: x.permute(order) if getattr(x, "ndim", 0) == 5 else x


def _is_convolution(layer: Any) -> bool:
    """Whether `_convolution` computes what the layer does: padding must be equal on both sides."""
    if type(layer) is not layers.Conv3D or layer.data_format != "channels_last" or set(layer.dilation_rate) != {1}:
        return False
    if layer.padding == "same":
        return set(layer.strides) == {1} and all(size % 2 for size in layer.kernel_size)
    return layer.padding == "valid"


def _symmetric_padding(layer: Any) -> tuple[int, int, int] | None:
    if layer.data_format != "channels_last" or any(before != after for before, after in layer.padding):
        return None
    time, height, width = (before for before, _ in layer.padding)
    return time, height, width


def _convolution(layer: Any, padding: Sequence[int]) -> Operation:
    import torch
    from torch.nn.functional import conv3d

    def run(x: Tensor) -> Tensor:
        x = _cast(x, layer).contiguous(memory_format=torch.channels_last_3d)
        kernel = _cast(_value(layer.kernel), layer).permute(4, 3, 0, 1, 2)
        kernel = kernel.contiguous(memory_format=torch.channels_last_3d)
        bias = _cast(_value(layer.bias), layer) if layer.use_bias else None
        return layer.activation(conv3d(x, kernel, bias, layer.strides, padding, groups=layer.groups))

    return run


def _batch_norm(layer: Any) -> Operation:
    import torch
    from torch.nn.functional import batch_norm

    def run(x: Tensor, mask: None = None) -> Tensor:
        gamma = _value(layer.gamma) if layer.scale else None
        beta = _value(layer.beta) if layer.center else None
        mean, variance = _value(layer.moving_mean), _value(layer.moving_variance)
        x = _cast(x, layer)
        if not layer.trainable:
            return batch_norm(x, mean, variance, gamma, beta, False, 0.0, layer.epsilon)
        # With momentum 1, these become the statistics of the batch.
        batch_mean, batch_variance = torch.zeros_like(mean), torch.zeros_like(variance)
        normalised = batch_norm(x, batch_mean, batch_variance, gamma, beta, True, 1.0, layer.epsilon)
        count = x.numel() // x.shape[1]
        batch_variance = batch_variance * ((count - 1) / count)  # PyTorch's is unbiased, Keras' is not
        for variable, old, new in (
            (layer.moving_mean, mean, batch_mean),
            (layer.moving_variance, variance, batch_variance),
        ):
            variable.assign(old * layer.momentum + new * (1.0 - layer.momentum))
        return normalised

    return run


def _relu(in_place: bool) -> Operation:
    from torch.nn.functional import relu

    return lambda x: relu(x, inplace=in_place)


def _padding(time: int, height: int, width: int) -> Operation:
    from torch.nn.functional import pad

    return lambda x: pad(x, (width, width, height, height, time, time))


def _max_pool(layer: Any) -> Operation:
    from torch.nn.functional import max_pool3d

    return lambda x: max_pool3d(x, layer.pool_size, layer.strides)


def _cast(x: Tensor, layer: Any) -> Tensor:
    return keras.ops.cast(x, layer.compute_dtype)


def _value(variable: Any) -> Tensor:
    return keras.ops.convert_to_tensor(variable)
