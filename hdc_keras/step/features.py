"""From windows to pooled features, as a pure function of the backbone's weights and state."""

from typing import Any

from hdc_keras.step.network import ContrastModel, Features, FeaturesFunction, Tensor, Values
from hdc_keras.step.rematerialisation import rematerialised


def pure_features(model: ContrastModel) -> FeaturesFunction:
    """Make the function (weights, state, windows, draws) -> (features, new state).

    `weights` and `state` are the values of the trainable and non-trainable variables of `model.pyramid`; features are
    pooled, (views, batch, channels) by level. The function is pure, so XLA can compile it, a loop can run it on
    micro-batches, and the backward pass can recompute it.
    """

    def features(weights: Values, state: Values, windows: Tensor, draws: Any) -> tuple[Features, Values]:
        clips = model.view_generator.apply(windows, draws)
        if model.step_options.rematerialise:
            maps, state = _block_by_block(model, weights, state, clips)
        else:
            maps, state = model.pyramid.stateless_call(weights, state, clips, training=True)
        return model.pool(maps), list(state)

    if not model.step_options.compile_features:
        return features
    import tensorflow as tf

    return tf.function(features, jit_compile=True)


def _block_by_block(
    model: ContrastModel, weights: Values, state: Values, clips: Tensor
) -> tuple[dict[str, Tensor], Values]:
    """The feature maps of `model.pyramid`, each block rematerialised separately."""
    variables = [*model.pyramid.trainable_variables, *model.pyramid.non_trainable_variables]
    values = dict(zip(map(id, variables), [*weights, *state], strict=True))
    outputs: list[Tensor] = []
    for block in model.blocks:
        run = rematerialised(lambda w, s, x, block=block: block.stateless_call(w, s, x, training=True))
        trainable, other = block.trainable_variables, block.non_trainable_variables
        clips, new = run([values[id(v)] for v in trainable], [values[id(v)] for v in other], clips)
        values |= zip(map(id, other), new, strict=True)
        outputs.append(clips)
    places = {id(output): place for place, output in enumerate(model.backbone.block_outputs)}
    maps = {level: outputs[places[id(model.backbone.pyramid_outputs[level])]] for level in model.feature_widths}
    return maps, [values[id(v)] for v in model.pyramid.non_trainable_variables]
