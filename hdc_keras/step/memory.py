"""How much memory a training step needs, by formula, so that a run can be judged before it fails.

The formula counts what PyTorch keeps with the kernels of `torch_kernels`: each convolution and batch norm keeps its
input, each ReLU its output, a max pooling its input and the places of the maxima. To these it adds the weights with
their gradients and the optimizer's variables, and the tensors that are alive for a moment in the backward pass.
JAX and TensorFlow arrange memory by themselves: on an H100, JAX needed 0.87 of what PyTorch did (docs/performance.md).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
from keras import layers

from hdc_keras.step.network import ContrastModel

# Layers whose backward pass needs neither input nor output.
_KEEPS_NOTHING = (
    layers.Add,
    layers.AveragePooling3D,
    layers.Concatenate,
    layers.Cropping3D,
    layers.InputLayer,
    layers.Normalization,
    layers.Rescaling,
    layers.Subtract,
    layers.ZeroPadding3D,
)
# Feature maps of the largest size that are alive at the peak beside those that are kept: gradients, and what the
# convolutions work on. Three explain the slope of memory by batch size on an H100 (102 MiB for each clip of R3D-18).
_MAPS_IN_MOTION = 3


class StepMemory(NamedTuple):
    """The memory of a step, in bytes, on each device.

    Attributes:
        weights: weights, their gradients, the optimizer's variables and moving averages.
        activations: what the backward pass needs of the clips that a device computes at once.
        in_motion: tensors that are alive only for a moment.
        clips: windows and views.
    """

    weights: int
    activations: int
    in_motion: int
    clips: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(self)


def step_memory(
    model: ContrastModel,
    videos: int,
    windows: Sequence[int],
    optimizer_slots: int = 1,
    micro_batches: int | None = None,
) -> StepMemory:
    """Estimate the memory of a step.

    Args:
        model: a compiled model.
        videos: videos of a batch on one device.
        windows: (windows, time, height, width, 3) of a video.
        optimizer_slots: variables that the optimizer keeps for each weight.
        micro_batches: number of micro-batches; those of the model when `None`.
    """
    options, size = model.step_options, model.view_generator.config.size
    clip = (windows[1], size, size, 3)
    pieces = micro_batches or options.micro_batches
    clips = math.ceil(videos / pieces) * len(model.online_views)
    kept, largest = _kept_bytes(model.pyramid, clip)
    if options.rematerialise:
        kept = _kept_in_blocks(model.blocks, clip)
    trainable = [*model.pyramid.trainable_variables, *model.objective.trainable_variables]
    copies = 2 + optimizer_slots + (pieces > 1) + (model.averages is not None)
    item = _item_size(model.pyramid)
    return StepMemory(
        weights=_bytes(trainable) * copies + (_bytes(trainable) // 2 if item == 2 else 0),
        activations=kept * clips,
        in_motion=_MAPS_IN_MOTION * largest * clips,
        clips=videos * math.prod(windows) + 2 * clips * math.prod(clip) * item,
    )


def _kept_bytes(network: keras.Model, input_shape: Sequence[int]) -> tuple[int, int]:
    """Bytes that the backward pass of a functional network keeps for one clip, and bytes of its largest map."""
    kept: dict[int, int] = {}
    largest = indices = 0
    for layer, inputs, outputs in _layers_with_shapes(network, input_shape):
        item = keras.backend.standardize_dtype(getattr(layer, "compute_dtype", None) or "float32")
        size = 2 if item in ("float16", "bfloat16") else 4
        if not isinstance(layer, _KEEPS_NOTHING):
            for number, shape in outputs if isinstance(layer, layers.ReLU) else inputs:
                kept[number] = math.prod(shape) * size
        if isinstance(layer, layers.MaxPooling3D):
            indices += sum(math.prod(shape) * 8 for _, shape in outputs)
        if isinstance(layer, layers.Conv3D):
            largest = max([largest, *(math.prod(shape) * size for _, shape in outputs)])
    return sum(kept.values()) + indices, largest


def _kept_in_blocks(blocks: Iterable[keras.Model], clip: Sequence[int]) -> int:
    """Bytes that are kept for one clip if the blocks are rematerialised: their inputs, and one block's activations."""
    inputs, most, shape = 0, 0, tuple(clip)
    for block in blocks:
        *_, (_, _, outputs) = _layers_with_shapes(block, shape)
        following = outputs[0][1][1:]
        # Of a block's activations, its input and output are kept anyhow, as inputs of blocks.
        boundary = (math.prod(shape) + math.prod(following)) * _item_size(block)
        inputs += math.prod(shape) * _item_size(block)
        most = max(most, _kept_bytes(block, shape)[0] - boundary)
        shape = following
    return inputs + most


def _layers_with_shapes(network: keras.Model, input_shape: Sequence[int]) -> list[tuple[Any, Any, Any]]:
    """Each layer of a functional network, with the numbers and shapes, for one clip, of its inputs and outputs."""
    tensors = {id(network.inputs[0]): keras.KerasTensor((1, *input_shape), network.inputs[0].dtype)}
    found = []
    same: dict[int, int] = {}  # padding is part of the convolution that follows, so its output does not exist
    for depth in sorted(network._nodes_by_depth)[::-1]:
        for node in network._nodes_by_depth[depth]:
            if node.is_input:
                continue
            arguments, options = node.arguments.fill_in(tensors)
            outputs = keras.tree.flatten(node.operation.compute_output_spec(*arguments, **options))
            tensors.update(zip(map(id, node.outputs), outputs, strict=True))
            if isinstance(node.operation, layers.ZeroPadding3D):
                same[id(node.outputs[0])] = id(node.input_tensors[0])
            numbers = [[same.get(id(x), id(x)) for x in side] for side in (node.input_tensors, node.outputs)]
            found.append((node.operation, *([(number, tensors[number].shape) for number in side] for side in numbers)))
    return found


def _item_size(network: keras.Model) -> int:
    """Bytes of a number in the activations."""
    return min(2 if layer.compute_dtype in ("float16", "bfloat16") else 4 for layer in network._flatten_layers())


def _bytes(variables: Iterable[Any]) -> int:
    return sum(math.prod(variable.shape) * 4 for variable in variables)
