"""From windows to pooled features, as a pure function of the backbone's weights and state."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from hdc_keras.step.network import ContrastModel, Features, FeaturesFunction, KeysFunction, Tensor, Values, Videos
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

    pyramid = _block_by_block(model) if model.step_options.rematerialise else _pure(model.pyramid)
    names = model.online_views

    def features(weights: Values, state: Values, videos: Videos) -> tuple[Features, Values]:
        views = model.view_generator.apply(videos.windows, videos.draws, videos.of_positives, names)
        maps, state = pyramid(weights, state, ops.reshape(views, (-1, *views.shape[2:])))
        return model.pool(maps, len(names)), list(state)

    return _compiled(features, model)


def pure_keys(model: ContrastModel) -> KeysFunction | None:
    """Make the function (averages, videos) -> features of the views that only the averaged network encodes.

    Batch norm uses its averaged statistics, as in EMAN (Cai et al. 2021, arXiv 2101.08482), so no key depends on the
    other videos of its batch.

    Returns:
        The function; `None` if the network itself encodes all views.
    """
    names = [name for name in model.view_generator.view_names if name not in model.online_views]
    if not names:
        return None
    pyramid, weights = _pure(model.pyramid, training=False), len(model.pyramid.trainable_variables)
    variables = weights + len(model.pyramid.non_trainable_variables)

    def keys(averages: Values, videos: Videos) -> Features:
        views = model.view_generator.apply(videos.windows, videos.draws, names=names)
        clips = ops.reshape(views, (-1, *views.shape[2:]))
        maps, _ = pyramid(averages[:weights], averages[weights:variables], clips)
        return model.pool(maps, len(names))

    return _compiled(keys, model)


def _compiled(function: Any, model: ContrastModel) -> Any:
    if not model.step_options.compile_features:
        return function
    import tensorflow as tf

    return tf.function(function, jit_compile=True)


def _pure(network: keras.Model, training: bool = True) -> NetworkFunction:
    if keras.backend.backend() == "torch":
        return TorchNetwork(network, training)
    return lambda weights, state, x: network.stateless_call(weights, state, x, training=training)


def _block_by_block(model: ContrastModel) -> NetworkFunction:
    """`model.pyramid`, each block rematerialised separately."""
    variables = [*model.pyramid.trainable_variables, *model.pyramid.non_trainable_variables]
    blocks = [(block, rematerialised(_pure(block))) for block in model.blocks]
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
