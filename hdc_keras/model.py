"""HDC: hierarchically decoupled spatial-temporal contrast as one Keras model, on any backend."""

from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import ops

from hdc_keras.backbones.video_backbone import VideoBackbone
from hdc_keras.config import ContrastConfig, ViewsConfig, validate
from hdc_keras.contrast.heads import ProjectionHead
from hdc_keras.contrast.losses import ContrastResult, info_nce
from hdc_keras.contrast.weighting import InvarianceWeights, invariance
from hdc_keras.devices import refuse_wrong_gradients, uses_xla
from hdc_keras.differentiation import Replicas
from hdc_keras.train_step import StepOptions, StepRecord, pure_features, train_step
from hdc_keras.views.generator import ViewGenerator, positives_of

Tensor = Any

# What is logged for each level and task.
_TRACKED = ("loss", "accuracy", "weight", "invariance")


@keras.saving.register_keras_serializable(package="hdc_keras")
class HDC(keras.Model):
    """Pretrains a video backbone without labels (Zhang and Crandall, WACV 2022, arXiv 2011.11261).

    `fit` takes windows: (batch, 2, time, height, width, 3) uint8, two windows of each video. All else happens inside:
    views, backbone, one head for each level and task, InfoNCE, and weights from the measured invariance.

    Args:
        backbone: the network to pretrain.
        views: a `ViewsConfig`, or a dict of its keys; how views are made.
        contrast: a `ContrastConfig`, or a dict of its keys; what is contrasted and how it is weighted.
        seed: seed of the augmentation.
        **kwargs: `name`, `dtype` (of views and heads; the backbone has its own).

    Raises:
        ConfigError: a key of `views` or `contrast` is unknown or out of range.
        ValueError: the backbone lacks one of the levels.

    Example:
        ```python
        model = HDC(R3D18(), views={"size": 112}, contrast={"weighting": "uniform"})
        model.compile("sgd")
        model.fit(windows, batch_size=8)        # (videos, 2, 16, 128, 171, 3) uint8
        model.backbone.save("backbone.keras")
        ```
    """

    def __init__(
        self,
        backbone: VideoBackbone,
        views: ViewsConfig | dict[str, Any] | None = None,
        contrast: ContrastConfig | dict[str, Any] | None = None,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.views = validate(ViewsConfig, views or {}, "HDC(views=...)")
        self.contrast = validate(ContrastConfig, contrast or {}, "HDC(contrast=...)")
        self.seed = seed
        self.tasks = tuple(positives_of(self.contrast.task))
        self.pairs = [
            (level, task)
            for level in self.contrast.used_levels
            for task in self.tasks
            if level in self.contrast.levels_of(task)
        ]
        # All of the model has one precision, which it keeps when it is loaded where another is the default.
        dtype = self.dtype_policy
        self.view_generator = ViewGenerator(self.views, self.contrast.task, seed, dtype=dtype, name="views")
        self.pyramid = backbone.level_model(self.contrast.used_levels)
        self.blocks = backbone.block_models(self.contrast.used_levels[-1])
        self.heads = {
            f"{level}_{task}": ProjectionHead(
                self.contrast.embedding_dim, self.contrast.hidden_dim, dtype=dtype, name=f"{level}_{task}_head"
            )
            for level, task in self.pairs
        }
        for name, head in self.heads.items():
            head.build((None, backbone.pyramid_outputs[name.split("_")[0]].shape[-1]))
        self.invariance_weights = InvarianceWeights(self.contrast, self.tasks, name="invariance_weights")
        names = [f"{level}_{task}_{kind}" for level, task in self.pairs for kind in _TRACKED]
        self.tracker = NamedMeans(names, name="tracker")
        self.step_record = StepRecord(names, name="step_record")
        self.feature_widths = {level: backbone.pyramid_outputs[level].shape[-1] for level in self.contrast.used_levels}
        self.built = True  # so that `load_weights` works on a new model

    def compile(
        self,
        optimizer: Any = "sgd",
        jit_compile: str | bool = "auto",
        micro_batches: int = 1,
        accumulate: Literal["cached", "plain"] = "cached",
        rematerialise: bool = False,
        clip_norm: float | None = None,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.compile`; the loss is the model's own.

        Args:
            optimizer: optimizer, or its name.
            jit_compile: whether XLA compiles the step. "auto" takes it where it helps: Keras' own "auto" would also
                take it for TensorFlow on a CPU, where XLA's 3D convolutions are about 5 times slower. Over several
                devices of TensorFlow it compiles views and backbone, and leaves out what the devices exchange.
            micro_batches: as in `StepOptions`.
            accumulate: as in `StepOptions`.
            rematerialise: as in `StepOptions`.
            clip_norm: as in `StepOptions`.
            **kwargs: further arguments of `keras.Model.compile`.

        Raises:
            ValueError: an option is out of range.
        """
        refuse_wrong_gradients(self.compute_dtype)
        jit = uses_xla("auto") if jit_compile == "auto" else bool(jit_compile)
        is_distributed = Replicas.of(self) > 1
        self.step_options = StepOptions(micro_batches, accumulate, rematerialise, clip_norm, jit and is_distributed)
        self.features_function = pure_features(self)
        super().compile(optimizer=optimizer, jit_compile=jit and not is_distributed, **kwargs)
        # Built here, because variables made inside the first step would have TensorFlow trace it twice.
        self.optimizer.build(self.trainable_variables)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Restore optimizer and XLA setting when a saved model is loaded; Keras leaves this to a class with its own
        `compile`."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def build(self, input_shape: Any) -> None:
        """Every layer is built by the constructor."""
        self.built = True

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Under a strategy of TensorFlow, Keras would take a batch to build the model with, and average it over the
        devices, which fails for pixels on several machines. There is nothing to build."""

    def _get_metrics_result_or_logs(self, logs: Any) -> dict[str, Any]:
        """An epoch's logs are all metrics, also where a step's are only the loss: over several machines."""
        return self.get_metrics_result()

    def call(self, windows: Tensor, training: bool | None = None) -> dict[str, Tensor]:
        """Views and embeddings of a batch of windows.

        Args:
            windows: (batch, 2, time, height, width, 3) uint8.
            training: whether batch norm uses the batch's statistics.

        Returns:
            `{level}_features`: (views, batch, channels) pooled, and `{level}_{task}`: (views, batch, embedding_dim)
            float32 of unit length. Views are in the order of `view_generator.view_names`.
        """
        return self.embed(self.pool(self.pyramid(self.view_generator(windows), training=training)), training=training)

    def pool(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Feature maps of all views (views * batch, time, height, width, channels) by level -> their means over time
        and space, (views, batch, channels) float32."""
        shape = len(self.view_generator.view_names), -1
        return {
            level: ops.reshape(ops.mean(ops.cast(maps[level], "float32"), axis=(1, 2, 3)), (*shape, width))
            for level, width in self.feature_widths.items()
        }

    def embed(self, features: dict[str, Tensor], training: bool | None = None) -> dict[str, Tensor]:
        """Pooled features by level -> the outputs of `call`."""
        outputs = {f"{level}_features": value for level, value in features.items()}
        for level, task in self.pairs:
            views, batch, width = ops.shape(features[level])
            rows = ops.reshape(features[level], (views * batch, width))
            embedded = self.heads[f"{level}_{task}"](rows, training=training)
            outputs[f"{level}_{task}"] = ops.reshape(embedded, (views, batch, self.contrast.embedding_dim))
        return outputs

    def train_step(self, *arguments: Any) -> Any:
        """Views, contrast, weighting and update; see `hdc_keras.train_step`."""
        return train_step(self, *arguments)

    def compute_loss(
        self,
        x: Tensor = None,
        y: Tensor = None,
        y_pred: dict[str, Tensor] | None = None,
        sample_weight: Tensor = None,
        training: bool = True,
    ) -> Tensor:
        """`sum_l (w_spatial_l L_spatial_l + lambda w_temporal_l L_temporal_l)`, scalar float32.

        Also moves the average of the invariance (when training) and the metrics.
        """
        assert y_pred is not None
        results = {pair: self._contrast(*pair, y_pred) for pair in self.pairs}
        measured = ops.stack(
            [
                ops.stack([self._invariance(level, task, y_pred) for task in self.tasks])
                for level in self.contrast.used_levels
            ]
        )
        if training:
            self.invariance_weights.update(measured)
        weights = ops.stop_gradient(self.invariance_weights.loss_weights())
        total, tracked = 0.0, []
        batch = ops.shape(y_pred[f"{self.contrast.used_levels[0]}_features"])[1]
        for level, task in self.pairs:
            place = self.contrast.used_levels.index(level), self.tasks.index(task)
            result = results[level, task]
            task_weight = self.contrast.temporal_weight if task == "temporal" else 1.0
            total = total + task_weight * weights[place] * result.loss
            tracked += [result.loss, result.accuracy, weights[place], measured[place]]  # in the order of _TRACKED
        self.tracker.update_state(ops.stack(tracked), batch)
        return total

    def _contrast(self, level: str, task: str, outputs: dict[str, Tensor]) -> ContrastResult:
        """InfoNCE of one level and task."""
        anchor, positive = self._pair(task, outputs[f"{level}_{task}"])
        negatives = None
        if task == "temporal" and self.view_generator.negative_views:
            order = self.view_generator.view_names
            rows = [order.index(name) for name in self.view_generator.negative_views]
            negatives = ops.stack([outputs[f"{level}_{task}"][row] for row in rows])
        return info_nce(anchor, positive, self.contrast.temperature, negatives, self.contrast.temporal_negative_weight)

    def _invariance(self, level: str, task: str, outputs: dict[str, Tensor]) -> Tensor:
        """Invariance of one level to what one task's pairs differ in; 0 where the level does not carry the task."""
        if (level, task) not in self.pairs:
            return ops.zeros(())
        basis = f"{level}_features" if self.contrast.measure_on == "features" else f"{level}_{task}"
        return invariance(*self._pair(task, outputs[basis]))

    def _pair(self, task: str, views: Tensor) -> tuple[Tensor, Tensor]:
        """Anchor and positive of a task, from (views, batch, channels)."""
        return views[0], views[self.view_generator.view_names.index(positives_of(self.contrast.task)[task])]

    @property
    def loss_tracker(self) -> keras.metrics.Mean:
        """Mean of the loss over the epoch so far."""
        return self._loss_tracker

    def compute_metrics(self, x: Tensor, y: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> dict[str, Tensor]:
        """Means of the epoch so far: `loss`, and `{level}_{task}_{loss|accuracy|weight|invariance}`."""
        return self.get_metrics_result()

    @property
    def steps_taken(self) -> int:
        """Steps trained in all."""
        return self.step_record.count("steps")

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "views": self.views.model_dump(mode="json"),
            "contrast": self.contrast.model_dump(mode="json"),
            "seed": self.seed,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "HDC":
        """A new model from what `get_config` gave."""
        config = dict(config)
        config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        config["backbone"] = keras.saving.deserialize_keras_object(config["backbone"])
        return cls(**config)


class NamedMeans(keras.metrics.Metric):
    """Weighted means of many numbers in one variable: a metric for each would be as many variables, and hundreds of
    operations a step.

    Args:
        names: of the numbers, in the order in which they come.
    """

    def __init__(self, names: Sequence[str], **kwargs: Any):
        super().__init__(**kwargs)
        self.names = list(names)
        self.totals = self.add_variable((len(self.names),), "zeros", name="totals")
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, values: Tensor, weight: Tensor) -> None:
        """Add (numbers,) `values`, each counted `weight` times."""
        weight = ops.cast(weight, "float32")
        self.totals.assign_add(ops.cast(values, "float32") * weight)
        self.count.assign_add(weight)

    def result(self) -> dict[str, Tensor]:
        """Mean by name."""
        means = self.totals / ops.maximum(self.count, 1.0)
        return {name: means[place] for place, name in enumerate(self.names)}
