"""The training step of `HDC`: decoupled contrast over the whole batch, however many devices and pieces share it.

The step is cut where it is narrow: at the pooled features of each level. Up to there a video has nothing to do with
any other, so that every device, and every micro-batch of it, makes the features of its own videos. From there on all
is small: every device gathers the features of the whole batch and computes heads, losses and weights for it, the same
on each. The gradient by the features is then carried back through the backbone, each device and micro-batch its own.
With micro-batches that is gradient caching (GradCache: Gao et al. 2021, arXiv 2101.06983).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import keras
from keras import ops, tree

from hdc_keras.differentiation import Replicas, pullback, rematerialised, repeat

if TYPE_CHECKING:
    from hdc_keras.model import HDC

Tensor = Any
Values = list[Tensor]
Features = dict[str, Tensor]


@dataclass(frozen=True)
class StepOptions:
    """How a step is computed. The defaults compute it in one piece.

    Attributes:
        micro_batches: pieces that each device's videos are worked through in, to save memory.
        accumulate: what micro-batches share. "cached": negatives come from the whole batch, and the gradient is that of
            the whole batch; features are computed twice. "plain": each micro-batch has only its own negatives, and
            gradients are averaged, as gradient accumulation does everywhere.
        rematerialise: keep only the outputs of the backbone's blocks for the backward pass and compute the rest again.
        clip_norm: greatest norm of the whole gradient.
        compile_features: compile views and backbone by themselves, with XLA, which cannot compile what the devices of
            a strategy exchange.
    """

    micro_batches: int = 1
    accumulate: Literal["cached", "plain"] = "cached"
    rematerialise: bool = False
    clip_norm: float | None = None
    compile_features: bool = False

    def __post_init__(self) -> None:
        if self.micro_batches < 1 or self.accumulate not in ("cached", "plain"):
            raise ValueError(f"`micro_batches` must be 1 or more and `accumulate` cached or plain. Received: {self}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"`clip_norm` must be positive. Received: {self.clip_norm}")


class StepRecord(keras.layers.Layer):
    """Counts steps, and notes where numbers stopped being finite.

    Attributes:
        steps: steps taken in all, the skipped ones too.
        skipped: steps whose loss or gradient was not finite; the gradient counts as zero and averages stay as they are.

    Args:
        names: of the numbers that are watched.
    """

    def __init__(self, names: Sequence[str], **kwargs: Any):
        super().__init__(**kwargs)
        self.names = list(names)
        self.steps = self._number("steps")
        self.skipped = self._number("skipped")
        self._first_step = self._number("first_skipped_step")
        self._first_names = self.add_weight(
            shape=(len(names),), initializer="zeros", dtype="float32", trainable=False, name="first_not_finite"
        )
        self.built = True

    def update(self, is_good: Tensor, values: Tensor) -> None:
        """Count a step; `values` are its (names,) numbers."""
        self.steps.assign(self.steps + 1)
        is_first = ops.logical_and(ops.logical_not(is_good), ops.equal(self.skipped.value, 0))
        self._first_step.assign(ops.where(is_first, self.steps.value, self._first_step.value))
        not_finite = ops.cast(ops.logical_not(ops.isfinite(values)), "float32")
        self._first_names.assign(ops.where(is_first, not_finite, self._first_names.value))
        self.skipped.assign(self.skipped + ops.cast(ops.logical_not(is_good), "int32"))

    def first_trouble(self) -> str:
        """The first step that was skipped and what was not finite in it, as in "step 12: P4_temporal_loss"."""
        found = ops.convert_to_numpy(self._first_names)
        names = [name for name, bad in zip(self.names, found, strict=True) if bad]
        what = ", ".join(names) if names else "the gradient, while all losses are finite"
        return f"step {int(ops.convert_to_numpy(self._first_step))}: {what}"

    def count(self, name: str) -> int:
        """`steps` or `skipped` as a number."""
        return int(ops.convert_to_numpy(getattr(self, name)))

    def _number(self, name: str) -> Any:
        return self.add_weight(shape=(), initializer="zeros", dtype="int32", trainable=False, name=name)


def train_step(model: "HDC", *arguments: Any) -> Any:
    """What Keras' `train_step` does, with its arguments and results, on the backend that runs."""
    if keras.backend.backend() == "jax":
        return _jax_train_step(model, *arguments)
    with _no_taping():
        gradients = _gradients(model, _windows_of(*arguments))
        # Stages above the deepest level in use have none.
        pairs = [(g, v) for g, v in zip(gradients, model.trainable_variables, strict=True) if g is not None]
        model.optimizer.apply(*map(list, zip(*pairs, strict=True)))
    logs = model.get_metrics_result()
    # Over several machines Keras averages each number that a step returns, along an axis that it must have.
    return {"loss": logs["loss"][None]} if Replicas().on_machines else logs


def _jax_train_step(model: "HDC", state: tuple[Values, ...], data: Any) -> tuple[dict[str, Tensor], tuple[Values, ...]]:
    trainable, _, optimizer, _ = state
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    pairs = [pair for kind, values in zip(variables, state, strict=True) for pair in zip(kind, values, strict=True)]
    with keras.StatelessScope(state_mapping=pairs) as scope:
        gradients = _gradients(model, _windows_of(data))
        logs = model.get_metrics_result()
    trainable, optimizer = model.optimizer.stateless_apply(optimizer, gradients, trainable)
    others = ([scope.get_current_value(variable) for variable in variables[kind]] for kind in (1, 3))
    return logs, (trainable, next(others), optimizer, next(others))


def _windows_of(data: Any) -> Tensor:
    return keras.utils.unpack_x_y_sample_weight(data)[0]


def _gradients(model: "HDC", windows: Tensor) -> list[Tensor | None]:
    """Gradients by `model.trainable_variables`. Moves all other state: averages, metrics, random draws, the record."""
    options, replicas = model.step_options, Replicas()
    _check(model, options, replicas)
    batch = ops.shape(windows)[0]
    draws = replicas.own(model.view_generator.draw(batch * replicas.count, windows.shape[2:5]))
    scale = model.optimizer.scale_loss(ops.ones(()))
    pass_ = _Pass(model, replicas, scale)
    if options.micro_batches == 1:
        pass_.whole(windows, draws)
    else:
        pieces = tree.map_structure(lambda x: _split(x, options.micro_batches), (windows, draws))
        (pass_.cached if options.accumulate == "cached" else pass_.plain)(options.micro_batches, *pieces)
    return pass_.finish(batch * replicas.count)


def _check(model: "HDC", options: StepOptions, replicas: Replicas) -> None:
    if replicas.count == 1:
        return
    inner: Any = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if inner.clipnorm or inner.global_clipnorm or inner.clipvalue:
        raise ValueError(
            "the optimizer's own clipping sees each device's gradient before they are added up. Give "
            "`clip_norm` to `HDC.compile` instead, which clips the whole gradient."
        )
    synchronised = any(getattr(layer, "synchronized", False) for layer in model.pyramid._flatten_layers())
    if synchronised and (options.compile_features or options.micro_batches > 1):
        raise ValueError(
            "synchronised batch norm talks between devices inside the backbone, which neither XLA nor a loop over "
            "micro-batches can hold: use local batch norm, or `jit_compile=False` and `micro_batches=1`."
        )


class _Pass:
    """The computation of one step's gradients."""

    def __init__(self, model: "HDC", replicas: Replicas, scale: Tensor):
        self.model = model
        self.replicas = replicas
        self.scale = scale
        self.backbone_variables = model.pyramid.trainable_variables
        self.backbone_state_variables = model.pyramid.non_trainable_variables
        self.head_variables = [v for head in model.heads.values() for v in head.trainable_variables]
        self.contrast_variables = [
            *(v for head in model.heads.values() for v in head.non_trainable_variables),
            *model.invariance_weights.non_trainable_variables,
            *model.tracker.variables,
        ]
        self.backbone = _values(self.backbone_variables)
        self.backbone_state = _values(self.backbone_state_variables)
        self.heads = _values(self.head_variables)
        self.contrast_state = _values(self.contrast_variables)
        self.loss: Tensor = None
        self.backbone_gradients: list[Tensor | None] = []
        self.head_gradients: list[Tensor | None] = []

    def whole(self, windows: Tensor, draws: Any) -> None:
        """All videos at once."""
        features, self.backbone_state, pull = pullback(
            lambda weights: self.model.features_function(weights, self.backbone_state, windows, draws), self.backbone
        )
        gradients = self._contrast(features)
        self.backbone_gradients = pull(gradients)

    def plain(self, count: int, windows: Tensor, draws: Any) -> None:
        """Each micro-batch by itself; gradients and losses are averaged."""
        sums: list[Any] = []
        for piece in range(count):
            # One after the other: TensorFlow would begin with the next before it has let go of this one's memory.
            with _after(tree.flatten(sums)):
                own = tree.map_structure(lambda x, piece=piece: ops.copy(x[piece]), (windows, draws))
                self.whole(*own)
            parts = [self.loss, *self.head_gradients, *self.backbone_gradients]
            sums = _added(sums, parts) if sums else parts
        means = [None if total is None else total / count for total in sums]
        self.loss, heads = means[0], len(self.head_variables)
        self.head_gradients, self.backbone_gradients = means[1 : 1 + heads], means[1 + heads :]

    def cached(self, count: int, windows: Tensor, draws: Any) -> None:
        """Features of all micro-batches, the gradient by them, then each micro-batch again with its part of that."""

        def run(weights: Values, state: Values, piece: Tensor) -> tuple[Features, Values]:
            own = tree.map_structure(lambda x: ops.take(x, piece, axis=0), (windows, draws))
            return self.model.features_function(weights, state, *own)

        first = self.backbone_state
        views, size = len(self.model.view_generator.view_names), ops.shape(windows)[1]
        buffers = {level: ops.zeros((count, views, size, width)) for level, width in self.model.feature_widths.items()}

        def forward(piece: Tensor, carried: tuple[Features, Values]) -> tuple[Features, Values]:
            buffers, state = carried
            features, state = run(self.backbone, state, piece)
            written = {name: _set(buffer, piece, features[name]) for name, buffer in buffers.items()}
            return written, state

        buffers, self.backbone_state = repeat(count, forward, (buffers, first))
        gradients = self._contrast(tree.map_structure(_joined_pieces, buffers))
        parts = tree.map_structure(lambda x: _split(x, count, axis=1), gradients)

        def backward(piece: Tensor, sums: Values) -> Values:
            _, _, pull = pullback(lambda weights: run(weights, first, piece), self.backbone)
            own = pull(tree.map_structure(lambda x: ops.take(x, piece, axis=0), parts))
            return [total if more is None else total + more for total, more in zip(sums, own, strict=True)]

        self.backbone_gradients = repeat(count, backward, [ops.zeros_like(value) for value in self.backbone])

    def _contrast(self, features: Features) -> Features:
        """Heads, losses and weights over every device's features. Returns the gradient by this device's own."""
        everyones = self.replicas.gather(features, axis=1)

        def loss_of(inputs: tuple[Values, Features]) -> tuple[Tensor, Values]:
            heads, everyones = inputs
            pairs = [*zip(self.head_variables, heads, strict=True)]
            pairs += zip(self.contrast_variables, self.contrast_state, strict=True)
            with keras.StatelessScope(state_mapping=pairs) as scope:
                loss = self.model.compute_loss(y_pred=self.model.embed(everyones, training=True))
            return loss, [scope.get_current_value(variable) for variable in self.contrast_variables]

        self.loss, self.contrast_state, pull = pullback(loss_of, (self.heads, everyones))
        self.head_gradients, gradients = pull(ops.cast(self.scale, self.loss.dtype))
        return self.replicas.own(gradients, axis=1)

    def finish(self, batch: Tensor) -> list[Tensor | None]:
        """Write the new state and give the gradients; a step that is not finite leaves it, and gives zeros."""
        # The optimizer adds up what the devices give; the heads' gradients are whole on each.
        count = self.replicas.count
        backbone, heads = self.backbone_gradients, [_scaled(g, 1.0 / count) for g in self.head_gradients]
        present = [g for g in [*backbone, *heads] if g is not None]
        finite = ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in present]))
        # Every device must come to the same verdict.
        troubled = self.replicas.total([1.0 - ops.cast(finite, "float32")])[0]
        is_finite = troubled < 0.5
        is_good = ops.isfinite(self.loss)
        if not hasattr(self.model.optimizer, "inner_optimizer"):
            is_good = ops.logical_and(is_good, is_finite)
        factor = self._clipping(backbone, heads)
        # A loss-scaling optimizer looks for itself, on each device, and skips when it finds a number that is none.
        instead = ops.where(is_finite, 0.0, float("inf")) if hasattr(self.model.optimizer, "inner_optimizer") else 0.0
        passes = ops.logical_and(is_good, is_finite)
        by_variable = {
            id(variable): None
            if g is None
            else ops.where(passes, g * ops.cast(factor, g.dtype), ops.cast(instead, g.dtype))
            for variable, g in zip([*self.backbone_variables, *self.head_variables], [*backbone, *heads], strict=True)
        }
        model = self.model
        tracked = self.contrast_state[-len(model.tracker.variables)]
        floats = [i for i, value in enumerate(self.backbone_state) if keras.backend.is_float_dtype(value.dtype)]
        for i, mean in zip(floats, self.replicas.mean([self.backbone_state[i] for i in floats]), strict=True):
            self.backbone_state[i] = mean
        _assign_where(is_good, self.backbone_state_variables, self.backbone_state)
        _assign_where(is_good, self.contrast_variables, self.contrast_state)
        model.step_record.update(is_good, tracked)
        counted = ops.cast(batch, "float32") * ops.cast(is_good, "float32")
        model.loss_tracker.update_state(ops.where(is_good, self.loss, 0.0), sample_weight=counted)
        return [by_variable.get(id(variable)) for variable in model.trainable_variables]

    def _clipping(self, backbone: list[Tensor | None], heads: list[Tensor | None]) -> Tensor:
        """What the gradient is multiplied by, so that its norm is at most `clip_norm`."""
        limit = self.model.step_options.clip_norm
        if limit is None:
            return ops.ones(())
        whole = self.replicas.total([g for g in [*backbone, *heads] if g is not None])
        norm = ops.sqrt(sum(ops.sum(ops.square(ops.cast(g, "float32"))) for g in whole)) / self.scale
        return ops.minimum(1.0, limit / ops.maximum(norm, 1e-12))


def pure_features(model: "HDC") -> Callable[[Values, Values, Tensor, Any], tuple[Features, Values]]:
    """(weights, state, windows, draws) of the backbone -> pooled features by level (views, batch, channels), new state.

    `weights` and `state` are values of `model.pyramid`'s trainable and other variables.
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


def _block_by_block(model: "HDC", weights: Values, state: Values, clips: Tensor) -> tuple[Features, Values]:
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
    maps: Features = {
        level: outputs[places[id(model.backbone.pyramid_outputs[level])]] for level in model.contrast.used_levels
    }
    return maps, [values[id(v)] for v in model.pyramid.non_trainable_variables]


def _values(variables: Sequence[Any]) -> Values:
    return [ops.convert_to_tensor(variable.value) for variable in variables]


def _assign_where(condition: Tensor, variables: Sequence[Any], values: Values) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(ops.where(condition, value, variable.value))


def _split(x: Tensor, count: int, axis: int = 0) -> Tensor:
    """Cut `axis` into `count` pieces, and put them first: (count, ...)."""
    shape = list(ops.shape(x))
    pieces = ops.reshape(x, (*shape[:axis], count, shape[axis] // count, *shape[axis + 1 :]))
    return ops.moveaxis(pieces, axis, 0)


def _joined_pieces(x: Tensor) -> Tensor:
    """(pieces, views, size, channels) -> (views, pieces * size, channels)."""
    count, views, size, width = ops.shape(x)
    return ops.reshape(ops.moveaxis(x, 0, 1), (views, count * size, width))


def _set(buffer: Tensor, row: Tensor, value: Tensor) -> Tensor:
    """`buffer` with `value` in one row."""
    return ops.slice_update(buffer, (row,) + (0,) * (len(buffer.shape) - 1), value[None])


def _scaled(value: Tensor | None, factor: float) -> Tensor | None:
    return value if value is None or factor == 1.0 else value * factor


def _added(ones: list[Any], others: list[Any]) -> list[Any]:
    return [one if other is None else one + other for one, other in zip(ones, others, strict=True)]


def _no_taping() -> AbstractContextManager[Any]:
    """PyTorch records everything that it is not told to leave out."""
    if keras.backend.backend() != "torch":
        return nullcontext()
    import torch

    return torch.no_grad()


def _after(tensors: list[Any]) -> AbstractContextManager[Any]:
    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    import tensorflow as tf

    return tf.control_dependencies([x for x in tensors if x is not None])
