"""From windows to pooled features, as a pure function of the backbone's weights and state."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from hdc_keras.step.network import ContrastModel, Features, FeaturesFunction, Tensor, Values, Videos
from hdc_keras.step.rematerialisation import rematerialised
from hdc_keras.step.torch_kernels import TorchNetwork

# (weights, state, input) -> (output, new state)
NetworkFunction = Callable[[Values, Values, Tensor], tuple[Any, Values]]


def pure_features(model: ContrastModel) -> FeaturesFunction:
    """Make the function (weights, state, videos) -> (features, new state).

    `weights` and `state` are the values of the trainable and non-trainable variables of `model.pyramid`; features are
    pooled, (views, batch, channels) by level. The function is pure, so XLA can compile it, a loop can run it on
    micro-batches, and the backward pass can recompute it.
    """

    pyramid = _block_by_block(model) if model.step_options.rematerialise else _in_training_mode(model.pyramid)

    def features(weights: Values, state: Values, videos: Videos) -> tuple[Features, Values]:
        views = model.view_generator.apply(videos.windows, videos.draws, videos.of_positives)
        maps, state = pyramid(weights, state, ops.reshape(views, (-1, *views.shape[2:])))
        return model.pool(maps), list(state)

    if not model.step_options.compile_features:
        return features
    import tensorflow as tf

    return tf.function(features, jit_compile=True)


def _in_training_mode(network: keras.Model) -> NetworkFunction:
    if keras.backend.backend() == "torch":
        return TorchNetwork(network)
    return lambda weights, state, x: network.stateless_call(weights, state, x, training=True)


def _block_by_block(model: ContrastModel) -> NetworkFunction:
    """`model.pyramid`, each block rematerialised separately."""
    variables = [*model.pyramid.trainable_variables, *model.pyramid.non_trainable_variables]
    blocks = [(block, rematerialised(_in_training_mode(block))) for block in model.blocks]
    places = {id(output): place for place, output in enumerate(model.backbone.block_outputs)}

    def run(weights: Values, state: Values, clips: Tensor) -> tuple[dict[str, Tensor], Values]:
        values = dict(zip(map(id, variables), [*weights, *state], strict=True))
        outputs: list[Tensor] = []
        for block, run_block in blocks:
            trainable, other = block.trainable_variables, block.non_trainable_variables
            clips, new = run_block([values[id(v)] for v in trainable], [values[id(v)] for v in other], clips)
            values |= zip(map(id, other), new, strict=True)
            outputs.append(clips)
        maps = {level: outputs[places[id(model.backbone.pyramid_outputs[level])]] for level in model.feature_widths}
        return maps, [values[id(v)] for v in model.pyramid.non_trainable_variables]

    return run


def has_batch_norm(network: keras.Model) -> bool:
    """Whether features depend on the other clips that are computed with them."""
    return any(isinstance(layer, keras.layers.BatchNormalization) for layer in network._flatten_layers())
