"""The model that fine-tuning trains: augmentation, backbone and a linear classifier."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from hdc_keras.backbones.video_backbone import VideoBackbone
from hdc_keras.config import ViewsConfig, validate
from hdc_keras.step.replicas import replica_count_of, replicas_of_step
from hdc_keras.views.framing import framing, within
from hdc_keras.views.transforms import (
    apply_colour,
    apply_geometry,
    draw_colour,
    draw_geometry,
    even_crops,
)

Tensor = Any


@keras.saving.register_keras_serializable(package="hdc_keras")
class VideoClassifier(keras.Model):
    """Classifies clips: a linear layer on the backbone's features, averaged over time and space.

    The features are those of the last stage, or those of several stages side by side.

    In training it takes one randomly augmented view of each clip; otherwise it takes evenly spaced crops.

    Args:
        backbone: the network to fine-tune.
        classes: names of the classes.
        views: the augmentation in training, as a `ViewsConfig` or a dict of its keys.
        crops: number of crops of each clip outside training (see `even_crops`).
        weight_decay: half of this, times the sum of all squared weights, is added to the loss.
        seed: seed of the augmentation.
        levels: the stages to classify by, as in ("P4", "P5"); the last one when `None`.
        **kwargs: `name`, and `dtype` of the augmentation. The backbone keeps its dtype; the classifier is float32.
    """

    def __init__(
        self,
        backbone: VideoBackbone,
        classes: list[str],
        views: ViewsConfig | dict[str, Any],
        crops: int = 1,
        weight_decay: float = 0.0,
        seed: int = 0,
        levels: Sequence[str] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.backbone = backbone
        # Any functional model has a last feature map.
        outputs = getattr(backbone, "pyramid_outputs", {"last": backbone.output})
        self._given_levels = list(levels) if levels else None
        self.levels = tuple(levels or list(outputs)[-1:])
        self.pyramid = keras.Model(backbone.input, {level: outputs[level] for level in self.levels})
        self.classes = list(classes)
        self.views_config = validate(ViewsConfig, views, "VideoClassifier(views=...)")
        self.crops = crops
        self.weight_decay = weight_decay
        self.seed = seed
        self.augmentation = ClipAugmentation(self.views_config, seed, dtype=self.dtype_policy, name="augmentation")
        channels = sum(outputs[level].shape[-1] for level in self.levels)
        limit = channels**-0.5
        self.classifier = keras.layers.Dense(
            len(self.classes),
            # As in PyTorch, whose recipes these are.
            kernel_initializer=keras.initializers.RandomUniform(-limit, limit),
            bias_initializer=keras.initializers.RandomUniform(-limit, limit),
            dtype="float32",
            name="classifier",
        )
        self.classifier.build((None, channels))
        # Not the optimizer's count, which under mixed_float16 leaves out the steps that loss scaling skips.
        self.steps = self.add_weight(
            shape=(), dtype="int32", trainable=False, aggregation="only_first_replica", name="steps"
        )
        self.built = True

    def build(self, input_shape: Any) -> None:
        """Do nothing: the constructor builds every layer."""
        self.built = True

    def call(self, windows: Tensor, training: bool | None = None) -> Tensor:
        """Compute logits.

        Args:
            windows: (batch, 1, time, height, width, 3) uint8.
            training: whether to augment the clips and let batch norm use the statistics of the batch.

        Returns:
            float32 logits: (batch, classes) in training, otherwise (crops * batch, classes).
        """
        clips = windows[:, 0]
        config = self.views_config
        if training:
            views = self.augmentation(clips)
        else:
            views = even_crops(clips, config.size, self.crops, config.focus, config.steady)
        return self.classify(views, training)

    def classify(self, clips: Tensor, training: bool | None = None) -> Tensor:
        """Logits (batch, classes) of clips (batch, time, size, size, 3) in [0, 1]."""
        return self.classifier(pooled(self.pyramid(clips, training=training), self.levels))

    def compute_loss(
        self,
        x: Tensor = None,
        y: Tensor = None,
        y_pred: Tensor = None,
        sample_weight: Tensor = None,
        training: bool = True,
    ) -> Tensor:
        """Add weight decay to the compiled loss. In `call`, the weights are cast to the compute dtype."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if training:
            self.steps.assign_add(1)
        if training and self.weight_decay:
            squares = [ops.sum(ops.square(variable)) for variable in self.trainable_variables]
            # The gradients of all replicas are summed, so each replica adds its share.
            loss = loss + 0.5 * self.weight_decay * sum(squares) / replica_count_of(self)
        return loss

    @property
    def steps_taken(self) -> int:
        """Total number of training steps so far."""
        return int(ops.convert_to_numpy(self.steps))

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "classes": self.classes,
            "views": self.views_config.model_dump(mode="json"),
            "crops": self.crops,
            "weight_decay": self.weight_decay,
            "seed": self.seed,
            "levels": self._given_levels,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "VideoClassifier":
        """Make a model from the result of `get_config`."""
        config = dict(config)
        config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        config["backbone"] = keras.saving.deserialize_keras_object(config["backbone"])
        return cls(**config)


def pooled(maps: Mapping[str, Tensor], levels: Sequence[str]) -> Tensor:
    """Feature maps, averaged over time and space, side by side: (batch, channels of all levels) float32."""
    return ops.concatenate([ops.mean(ops.cast(maps[level], "float32"), axis=(1, 2, 3)) for level in levels], axis=-1)


class ClipAugmentation(keras.layers.Layer):
    """Randomly crops, flips, recolours and blurs each clip.

    Args:
        config: ranges and probabilities.
        seed: seed of the draws.
    """

    def __init__(self, config: ViewsConfig, seed: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.config = config
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, clips: Tensor) -> Tensor:
        """Augment clips.

        Args:
            clips: (batch, time, height, width, 3) uint8.

        Returns:
            (batch, time, size, size, 3) in the compute dtype, in [0, 1].
        """
        replicas = replicas_of_step()
        # Drawn for the whole batch on every replica, so results do not depend on the number of replicas.
        batch, frame_size = ops.shape(clips)[0] * replicas.count, clips.shape[2:4]
        geometry = draw_geometry(batch, frame_size, self.config, self.seed_generator)
        colour = draw_colour(batch, self.config, self.seed_generator)
        geometry, colour = replicas.local_part(geometry), replicas.local_part(colour)
        if self.config.focus or self.config.steady:
            outer = framing(clips, self.config.focus, self.config.steady)
            geometry = geometry | {"box": within(outer, geometry["box"])}
        views = apply_geometry(ops.cast(clips, self.compute_dtype) / 255.0, geometry, self.config.size)
        return apply_colour(views, colour)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Shape of the augmented clips: (batch, time, size, size, 3)."""
        return (*input_shape[:2], self.config.size, self.config.size, 3)

    def save_own_variables(self, store: Any) -> None:
        """Save the state of the random generator, which Keras leaves out. A resumed run then draws the same values."""
        store["seed_state"] = ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        """Restore the state of the random generator."""
        self.seed_generator.state.assign(store["seed_state"][()])


@keras.saving.register_keras_serializable(package="hdc_keras")
class BalancedCrossEntropy(keras.losses.Loss):
    """Cross-entropy of logits in which each class has a weight.

    Args:
        weights: weight of each class. With videos / classes / videos of the class, all classes count the same.
        **kwargs: as of `keras.losses.Loss`.
    """

    def __init__(self, weights: Sequence[float], **kwargs: Any):
        super().__init__(**kwargs)
        self.weights = list(weights)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The loss of each clip: class indices (batch,) and logits (batch, classes) -> (batch,)."""
        labels = ops.reshape(ops.cast(y_true, "int32"), (-1,))
        losses = keras.losses.sparse_categorical_crossentropy(labels, y_pred, from_logits=True)
        return ops.take(ops.convert_to_tensor(self.weights, losses.dtype), labels) * losses

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {**super().get_config(), "weights": self.weights}
