"""PyTorch's own kernels for the layers of a backbone, when it is trained on PyTorch.

Keras 3.15 copies the input of each 3D convolution into two other memory layouts, and composes batch norm of elementary
operations in float32, which keep several activations for the backward pass. Here the layers of the same Keras model
run as a PyTorch user would write them: channels-first tensors in `channels_last_3d` memory, native batch norm, padding
inside the convolution, ReLU in place. Results are those of Keras to rounding (tests/step/test_torch_kernels.py).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers

from hdc_keras.backbones.depthwise import DepthwiseConvolution

Tensor = Any
Values = list[Tensor]
Operation = Callable[..., Tensor]

_CHANNELS_FIRST, _CHANNELS_LAST = (0, 4, 1, 2, 3), (0, 2, 3, 4, 1)
# Layers that do not need their own output for the backward pass.
_OUTPUT_NOT_KEPT = layers.BatchNormalization | layers.Add | layers.Conv3D
# In half precision, cuDNN has no tensor-core kernel for the three channels of a clip. On an H100, the stem of R3D-18
# takes 24.6 ms for 96 clips, and with a channel of zeros 14.4 ms (in float32 12.6 and 19.6 ms).
_LEAST_CHANNELS = 4


class TorchNetwork:
    """Runs a functional model of 3D layers like its `stateless_call`.

    A layer without a kernel of its own below is called as it is.

    Args:
        network: a functional model from clips (batch, time, height, width, channels) to feature maps.
        training: whether batch norm uses the statistics of the batch.
    """

    def __init__(self, network: keras.Model, training: bool = True):
        self.network = network
        nodes = [node for depth in sorted(network._nodes_by_depth)[::-1] for node in network._nodes_by_depth[depth]]
        nodes = [node for node in nodes if not node.is_input]
        producers = {id(tensor): node.operation for node in nodes for tensor in node.outputs}
        readers = Counter(id(tensor) for tensor in network.outputs)
        readers.update(id(tensor) for node in nodes for tensor in node.input_tensors)
        calls = Counter(id(node.operation) for node in nodes)
        operations: dict[int, Operation] = {}
        for node in nodes[::-1]:
            layer, inputs = node.operation, node.input_tensors
            before = producers.get(id(inputs[0]))
            # Whether nothing else reads an input, so that it can be overwritten or need not exist.
            is_sole_reader = [readers[id(tensor)] == 1 and calls[id(layer)] == 1 for tensor in inputs]
            if isinstance(before, layers.ZeroPadding3D) and all(is_sole_reader) and _is_convolution(layer):
                padding = _symmetric_padding(before)
                if padding and layer.padding == "valid" and calls[id(before)] == 1:
                    operations[id(before)] = lambda x: x
                    operations[id(layer)] = _convolution(layer, padding)
                    continue
            writable = [
                sole and isinstance(producers.get(id(tensor)), _OUTPUT_NOT_KEPT)
                for tensor, sole in zip(inputs, is_sole_reader, strict=True)
            ]
            operations.setdefault(id(layer), _kernel(layer, writable, training))
        # Each tensor is freed after its last reader, unless the backward pass needs it.
        last_reader = {id(tensor): number for number, node in enumerate(nodes) for tensor in node.input_tensors}
        kept = {id(tensor) for tensor in network.outputs}
        freed: list[list[int]] = [[] for _ in nodes]
        for tensor, number in last_reader.items():
            if tensor not in kept:
                freed[number].append(tensor)
        self._steps = [(node, operations[id(node.operation)], freed[number]) for number, node in enumerate(nodes)]

    def __call__(self, weights: Values, state: Values, clips: Tensor) -> tuple[Any, Values]:
        """Return the outputs of the network and the new values of its non-trainable variables.

        Args:
            weights: values of the trainable variables.
            state: values of the non-trainable variables.
            clips: input of the network, channels last.
        """
        variables = [*self.network.trainable_variables, *self.network.non_trainable_variables]
        mapping = list(zip(variables, [*weights, *state], strict=True))
        tensors = {id(self.network.inputs[0]): clips.permute(_CHANNELS_FIRST)}
        with keras.StatelessScope(state_mapping=mapping) as scope:
            for node, operation, freed in self._steps:
                arguments, options = node.arguments.fill_in(tensors)
                outputs = keras.tree.flatten(operation(*arguments, **options))
                tensors.update(zip(map(id, node.outputs), outputs, strict=True))
                del arguments, outputs
                for tensor in freed:
                    del tensors[tensor]
        state = [scope.get_current_value(variable) for variable in self.network.non_trainable_variables]
        outputs = [tensors[id(tensor)].permute(_CHANNELS_LAST) for tensor in self.network.outputs]
        return keras.tree.pack_sequence_as(self.network._outputs_struct, outputs), state


def _kernel(layer: Any, writable: Sequence[bool], training: bool) -> Operation:
    """The fastest equivalent of a layer for (batch, channels, time, height, width).

    Args:
        layer: the layer.
        writable: for each of its inputs, whether it may be overwritten.
        training: as in `TorchNetwork`.
    """
    if _is_convolution(layer):
        return _convolution(layer, [size // 2 if layer.padding == "same" else 0 for size in layer.kernel_size])
    if type(layer) is DepthwiseConvolution:
        return _depthwise_convolution(layer)
    if type(layer) is layers.BatchNormalization and not (layer.renorm or layer.synchronized):
        return _batch_norm(layer, training)
    if type(layer) is layers.ReLU and layer.max_value is None and not layer.negative_slope and not layer.threshold:
        return _relu(writable[0])
    if type(layer) is layers.Add and len(writable) == 2:
        return _add(writable[0])
    if type(layer) is layers.ZeroPadding3D and (padding := _symmetric_padding(layer)):
        return _padding(*padding)
    if type(layer) is layers.MaxPooling3D and layer.padding == "valid" and layer.data_format == "channels_last":
        return _max_pool(layer)
    return _channels_last(layer, training)


def _channels_last(layer: Any, training: bool) -> Operation:
    """A layer as Keras runs it, between two changes of the order of axes, which copy nothing."""
    takes_training = "training" in getattr(layer, "_call_context_args", {})

    def run(*arguments: Any, **options: Any) -> Tensor:
        arguments = keras.tree.map_structure(_moved(_CHANNELS_LAST), arguments)
        options = options | ({"training": training} if takes_training else {})
        return keras.tree.map_structure(_moved(_CHANNELS_FIRST), layer(*arguments, **options))

    return run


def _moved(order: tuple[int, ...]) -> Callable[[Any], Any]:
    return lambda x: x.permute(order) if getattr(x, "ndim", 0) == 5 else x


def _is_convolution(layer: Any) -> bool:
    """Whether `_convolution` computes what the layer does: padding must be equal on both sides."""
    if type(layer) is not layers.Conv3D or layer.data_format != "channels_last" or set(layer.dilation_rate) != {1}:
        return False
    if layer.padding == "same":
        sides = zip(layer.kernel_size, layer.strides, strict=True)
        return all(size == 1 or (size % 2 and stride == 1) for size, stride in sides)
    return layer.padding == "valid"


def _symmetric_padding(layer: Any) -> tuple[int, int, int] | None:
    if layer.data_format != "channels_last" or any(before != after for before, after in layer.padding):
        return None
    time, height, width = (before for before, _ in layer.padding)
    return time, height, width


def _convolution(layer: Any, padding: Sequence[int]) -> Operation:
    import torch
    from torch.nn.functional import conv3d, pad

    def run(x: Tensor) -> Tensor:
        x, kernel = _cast(x, layer), _cast(_value(layer.kernel), layer).permute(4, 3, 0, 1, 2)
        missing = _LEAST_CHANNELS - x.shape[1]
        if missing > 0 and x.is_cuda and x.dtype != torch.float32 and layer.groups == 1:
            x, kernel = (pad(tensor, (0, 0, 0, 0, 0, 0, 0, missing)) for tensor in (x, kernel))
        x = x.contiguous(memory_format=torch.channels_last_3d)
        kernel = kernel.contiguous(memory_format=torch.channels_last_3d)
        bias = _cast(_value(layer.bias), layer) if layer.use_bias else None
        return layer.activation(conv3d(x, kernel, bias, layer.strides, padding, groups=layer.groups))

    return run


def _depthwise_convolution(layer: DepthwiseConvolution) -> Operation:
    from torch.nn.functional import conv3d

    strides, padding = (1, layer.stride, layer.stride), [size // 2 for size in layer.kernel_size]

    def run(x: Tensor) -> Tensor:
        kernel = _cast(_value(layer.kernel), layer).permute(3, 0, 1, 2).unsqueeze(1)
        return conv3d(_cast(x, layer), kernel, None, strides, padding, groups=x.shape[1])

    return run


def _batch_norm(layer: Any, training: bool) -> Operation:
    import torch
    from torch.nn.functional import batch_norm

    def run(x: Tensor, mask: None = None) -> Tensor:
        gamma = _value(layer.gamma) if layer.scale else None
        beta = _value(layer.beta) if layer.center else None
        mean, variance = _value(layer.moving_mean), _value(layer.moving_variance)
        x = _cast(x, layer)
        if not (training and layer.trainable):
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


def _add(in_place: bool) -> Operation:
    return lambda tensors: tensors[0].add_(tensors[1]) if in_place else tensors[0] + tensors[1]


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
