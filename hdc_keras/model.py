"""HDC: hierarchically decoupled spatial-temporal contrast as one Keras model, on any backend."""

from typing import Any, Literal

import keras
from keras import ops

from hdc_keras.backbones.video_backbone import VideoBackbone
from hdc_keras.config import ContrastConfig, ViewsConfig, require_no_temporal_negatives, validate
from hdc_keras.devices import refuse_wrong_gradients, require_compiler, uses_xla, warn_of_slow_convolutions
from hdc_keras.errors import ConfigError
from hdc_keras.objective.averages import WeightAverages
from hdc_keras.objective.contrast import ContrastObjective
from hdc_keras.objective.objective import Objective
from hdc_keras.step.features import has_batch_norm, pure_features, pure_keys
from hdc_keras.step.inputs import require_first_batch, require_windows_only
from hdc_keras.step.options import StepOptions
from hdc_keras.step.record import LaggingValue, StepRecord
from hdc_keras.step.replicas import replica_count_of
from hdc_keras.step.training_step import train_step
from hdc_keras.views.generator import ViewGenerator

Tensor = Any
_QUEUE_MOMENTUM = 0.999  # MoCo's (He et al. 2020, arXiv 1911.05722)


@keras.saving.register_keras_serializable(package="hdc_keras")
class HDC(keras.Model):
    """Pretrains a video backbone without labels (Zhang and Crandall, WACV 2022, arXiv 2011.11261).

    `fit` takes windows: (batch, 2, time, height, width, 3) uint8 or float in 0..255, two windows of each of two or more
    videos, without labels. Everything else happens inside the model: windows -> views (`view_generator`) -> feature
    maps (`pyramid`) -> pooled features -> loss (`objective`).

    Args:
        backbone: the network to pretrain.
        views: a `ViewsConfig`, or a dict of its keys; how views are made.
        contrast: a `ContrastConfig`, or a dict of its keys; what is contrasted and how it is weighted.
        seed: seed of the augmentation.
        ema: momentum of a moving average of all weights (see `use_averages`), in (0, 1). `None`: no average, or, with a
            queue of negatives, which needs one, 0.999 as in MoCo.
        **kwargs: `name`, `dtype` (of views and heads; the backbone has its own).

    Attributes:
        uses_averages: whether `use_averages` was called.

    Raises:
        ConfigError: `backbone` is not a backbone or has regularisers, a key of `views` or `contrast` is unknown or out
            of range, or `ema` is.
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
        ema: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not isinstance(backbone, VideoBackbone):
            raise ConfigError(f"HDC(backbone=...): expected a VideoBackbone, such as R3D18(). Received: {backbone!r}")
        _refuse_regularisers(backbone)
        self.backbone = backbone
        self.views_config = validate(ViewsConfig, views or {}, "HDC(views=...)")
        self.contrast_config = validate(ContrastConfig, contrast or {}, "HDC(contrast=...)")
        self.seed = seed
        uses_queue = self.contrast_config.negatives == "queue"
        self.ema = _QUEUE_MOMENTUM if ema is None and uses_queue else ema
        _require_queue_and_average(self.views_config, uses_queue, self.ema)
        levels = self.contrast_config.used_levels
        # The dtype policy is passed on explicitly, so that a loaded model keeps it whatever the global policy is.
        self.view_generator = ViewGenerator(
            self.views_config, self.contrast_config.task, seed, dtype=self.dtype_policy, name="views"
        )
        self.pyramid = backbone.level_model(levels)
        self.blocks = backbone.block_models(levels[-1])
        self.feature_widths: dict[str, int] = {level: backbone.pyramid_outputs[level].shape[-1] for level in levels}
        # With a queue, the network encodes the anchor, and its moving average the keys, which are the positives.
        self.online_views = self.view_generator.view_names[:1] if uses_queue else self.view_generator.view_names
        self.averages = None
        if self.ema is not None:
            self.averages = WeightAverages(self._averaged_variables, self.ema, name="averages")
        self.objective = self.make_objective()
        self.step_record = StepRecord(self.objective.monitored_names, name="step_record")
        self.uses_averages = False
        self.built = True  # lets `load_weights` work on a new model

    def make_objective(self) -> Objective:
        """The loss on pooled features. A subclass may return another `Objective`."""
        return ContrastObjective(
            self.contrast_config,
            self.feature_widths,
            self.view_generator.view_names,
            self.view_generator.negative_views,
            self.ema,
            dtype=self.dtype_policy,
            name="objective",
        )

    def compile(
        self,
        optimizer: Any = "sgd",
        jit_compile: str | bool = "auto",
        micro_batches: int = 1,
        accumulate: Literal["cached", "plain"] = "cached",
        rematerialise: bool = False,
        clip_norm: float | None = None,
        shuffle_statistics: bool = True,
        **kwargs: Any,
    ) -> None:
        """Like `keras.Model.compile`, but without a loss, which `objective` provides.

        Args:
            optimizer: an optimizer, or its name.
            jit_compile: whether XLA compiles the step. "auto" uses it where it helps: Keras' own "auto" would also use
                it for TensorFlow on a CPU, where XLA's 3D convolutions are about 5 times slower. With several replicas
                of a TensorFlow strategy it compiles views and backbone, but not the collectives.
            micro_batches: as in `StepOptions`.
            accumulate: as in `StepOptions`.
            rematerialise: as in `StepOptions`.
            clip_norm: as in `StepOptions`.
            shuffle_statistics: as in `StepOptions`; without effect if the backbone has no batch norm.
            **kwargs: further arguments of `keras.Model.compile`, except for losses and metrics.

        Raises:
            ConfigError: XLA is asked for on PyTorch, or gradients would be wrong in this precision on this device.
            ValueError: an option is unknown or out of range, a loss or metrics are given, or plain micro-batches are
                asked for with a queue of negatives.
        """
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"`{name}` cannot be set: `HDC.objective` provides loss and metrics, configured by "
                    f"HDC(contrast=...). Received: {kwargs[name]!r}"
                )
        if jit_compile not in (True, False, "auto"):
            raise ValueError(f'`jit_compile` must be True, False or "auto". Received: {jit_compile!r}')
        refuse_wrong_gradients(self.backbone)
        jit = uses_xla("auto") if isinstance(jit_compile, str) else jit_compile
        require_compiler(jit)
        warn_of_slow_convolutions()
        is_distributed = replica_count_of(self) > 1
        self.step_options = StepOptions(
            micro_batches,
            accumulate,
            rematerialise,
            clip_norm,
            compile_features=jit and is_distributed,
            shuffle_statistics=shuffle_statistics and has_batch_norm(self.pyramid),
        )
        if (
            self.step_options.micro_batches > 1
            and accumulate == "plain"
            and self.online_views != self.view_generator.view_names
        ):
            raise ValueError("`accumulate`: a queue of negatives needs `cached` micro-batches. Received: plain")
        self.features_function = pure_features(self)
        self.keys_function = pure_keys(self)
        self.loss_on_host = LaggingValue()
        super().compile(optimizer=optimizer, jit_compile=jit and not is_distributed, **kwargs)
        # Built here: variables created inside the first step would make TensorFlow trace it twice.
        self.optimizer.build(self.trainable_variables)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Restore optimizer and XLA setting of a saved model; Keras leaves this to classes that override `compile`."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def build(self, input_shape: Any) -> None:
        """Does nothing: the constructor builds every layer."""
        self.built = True

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Does nothing: the constructor builds every layer. Under a TensorFlow strategy, Keras would fetch a batch to
        build the model and average it over the replicas, which fails for uint8 pixels on several machines."""

    def _get_metrics_result_or_logs(self, logs: Any) -> dict[str, Any]:
        """Log all metrics at the end of an epoch. A step returns only the loss: Keras copies each value to the host."""
        return self.get_metrics_result()

    def call(self, windows: Tensor, training: bool | None = None) -> dict[str, Tensor]:
        """Make the views of a batch of windows, and return their pooled features and embeddings.

        Args:
            windows: (batch, 2, time, height, width, 3) uint8.
            training: whether batch norm uses the batch's statistics.

        Returns:
            `{level}_features`: (views, batch, channels) pooled, and `{level}_{task}`: (views, batch, embedding_dim)
            float32 of unit length. Views are in the order of `view_generator.view_names`.
        """
        draws = self.view_generator.draw(ops.shape(windows)[0], windows.shape[2:5])
        views = self.view_generator.apply(windows, draws)
        maps = self.pyramid(ops.reshape(views, (-1, *views.shape[2:])), training=training)
        features = self.pool(maps, len(self.view_generator.view_names))
        return self.objective.embed(features, training=training)

    def pool(self, maps: dict[str, Tensor], views: int) -> dict[str, Tensor]:
        """Average feature maps over time and space.

        Args:
            maps: by level, (batch * views, time, height, width, channels).
            views: number of views.

        Returns:
            By level, (views, batch, channels) float32.
        """
        return {
            level: ops.moveaxis(ops.reshape(_mean_over_pixels(maps[level]), (-1, views, width)), 1, 0)
            for level, width in self.feature_widths.items()
        }

    def fit(self, x: Any = None, y: Any = None, batch_size: int | None = None, epochs: int = 1, **kwargs: Any) -> Any:
        """Like `keras.Model.fit`, for windows without labels.

        Args:
            x: windows (videos, 2, time, height, width, 3), uint8 or float in 0..255; or a dataset of batches of them.
            y: must be `None`.
            batch_size: videos per step, for an array of windows; 32 when `None`.
            epochs: passes over the windows.
            **kwargs: further arguments of `keras.Model.fit`.

        Raises:
            ValueError: the windows have another shape or range, a batch has only one video, or there are labels.
        """
        require_windows_only(y, kwargs.get("sample_weight"))
        if self.compiled:
            require_first_batch(x, batch_size, self.step_options)
        return super().fit(x, batch_size=batch_size, epochs=epochs, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, return_dict: bool = False, **kwargs: Any) -> Any:
        """Like `keras.Model.train_on_batch`, for windows without labels; see `fit`.

        Returns:
            The mean loss so far; with `return_dict`, all means so far by name.
        """
        require_windows_only(y, kwargs.get("sample_weight"))
        if self.compiled:
            require_first_batch(x, len(x), self.step_options)
        super().train_on_batch(x, **kwargs)
        if return_dict:
            return {name: float(value) for name, value in self.get_metrics_result().items()}
        return float(self.loss_tracker.result())

    def train_step(self, *arguments: Any) -> Any:
        """One training step; see `hdc_keras.step`."""
        return train_step(self, *arguments)

    def compute_loss(
        self,
        x: Tensor = None,
        y: Tensor = None,
        y_pred: dict[str, Tensor] | None = None,
        sample_weight: Tensor = None,
        training: bool = True,
    ) -> Tensor:
        """The objective's loss for the outputs of `call`, scalar float32. `train_step` does not use it.

        Also updates the metrics and, when training, the moving averages of the objective.
        """
        assert y_pred is not None
        output = self.objective.loss_of(y_pred, training)
        batch = ops.shape(y_pred[f"{self.contrast_config.used_levels[0]}_features"])[1]
        self.objective.track(output.monitored, batch)
        return output.loss

    @property
    def loss_tracker(self) -> keras.metrics.Mean:
        """Mean of the loss over the epoch so far."""
        return self._loss_tracker

    def compute_metrics(self, x: Tensor, y: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> dict[str, Tensor]:
        """Means of the epoch so far: `loss`, and `{level}_{task}_{loss|accuracy|weight|invariance|deviation}`."""
        return self.get_metrics_result()

    def use_averages(self) -> None:
        """Replace the weights of backbone and heads by their moving averages. Not to be undone; for evaluation.

        After step t, they are averages of the weights before each of the steps 1 ... t.

        Raises:
            ConfigError: the model has no averages.
        """
        if self.averages is None:
            raise ConfigError(
                "the model keeps no moving averages of its weights: it was made without HDC(ema=...), which is "
                "`train.ema` of a run."
            )
        self.averages.copy_to(self._averaged_variables)
        if self.objective.averages:
            self.objective.averages.copy_to(self.objective.head_variables)
        self.uses_averages = True

    @property
    def _averaged_variables(self) -> list[Any]:
        return [*self.pyramid.trainable_variables, *self.pyramid.non_trainable_variables]

    @property
    def steps_taken(self) -> int:
        """Number of training steps taken so far."""
        return self.step_record.count("steps")

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "views": self.views_config.model_dump(mode="json"),
            "contrast": self.contrast_config.model_dump(mode="json"),
            "seed": self.seed,
            "ema": self.ema,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "HDC":
        """Create a model from the result of `get_config`."""
        config = dict(config)
        config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        config["backbone"] = keras.saving.deserialize_keras_object(config["backbone"])
        return cls(**config)


def _require_queue_and_average(views: ViewsConfig, uses_queue: bool, ema: float | None) -> None:
    if ema is not None and not 0 < ema < 1:
        raise ConfigError(f"HDC(ema=...): expected a number in (0, 1), such as 0.999. Received: {ema!r}")
    if uses_queue:
        try:
            require_no_temporal_negatives(views)
        except ValueError as error:
            raise ConfigError(f"HDC(contrast=...): {error}.") from error


def _refuse_regularisers(backbone: keras.Model) -> None:
    """Raise `ConfigError` if a layer adds a loss of its own, which the contrastive step would leave out."""
    for layer in backbone.layers:
        weights = any(variable.regularizer is not None for variable in layer.trainable_variables)
        if weights or getattr(layer, "activity_regularizer", None) is not None:
            raise ConfigError(
                f"HDC(backbone=...): layer `{layer.name}` has a regulariser, which pretraining would ignore. Build the "
                "backbone without it, and use the optimizer's weight decay (`train.weight_decay`)."
            )


def _mean_over_pixels(maps: Tensor) -> Tensor:
    """(batch, time, height, width, channels) -> (batch, channels) float32."""
    if keras.backend.backend() == "torch":
        import torch

        return maps.mean((1, 2, 3), dtype=torch.float32)  # without a copy of the maps in float32
    return ops.mean(ops.cast(maps, "float32"), axis=(1, 2, 3))
