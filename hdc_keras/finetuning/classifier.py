"""A backbone with a classifier on it, which fine-tuning trains."""

from typing import Any

import keras
from keras import ops

from hdc_keras.backbones.video_backbone import VideoBackbone
from hdc_keras.config import ViewsConfig, validate
from hdc_keras.step.replicas import ReplicaGroup, replica_count_of
from hdc_keras.views.transforms import apply_colour, apply_geometry, draw_colour, draw_geometry, even_crops

Tensor = Any


@keras.saving.register_keras_serializable(package="hdc_keras")
class VideoClassifier(keras.Model):
    """Clips to logits: one random view when training, even crops else; backbone, mean over time and space, one layer.

    Args:
        backbone: the network to fine-tune.
        classes: names of the classes.
        views: a `ViewsConfig`, or a dict of its keys; the crops and colours of training.
        crops: crops of a clip that is judged (see `even_crops`).
        weight_decay: half of it times the sum of all squared weights is added to the loss.
        seed: seed of the augmentation.
        **kwargs: `name`, `dtype` (of augmentation and classifier; the backbone has its own).
    """

    def __init__(
        self,
        backbone: VideoBackbone,
        classes: list[str],
        views: ViewsConfig | dict[str, Any],
        crops: int = 1,
        weight_decay: float = 0.0,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.classes = list(classes)
        self.views_config = validate(ViewsConfig, views, "VideoClassifier(views=...)")
        self.crops = crops
        self.weight_decay = weight_decay
        self.seed = seed
        self.augmentation = ClipAugmentation(self.views_config, seed, dtype=self.dtype_policy, name="augmentation")
        self.classifier = keras.layers.Dense(len(self.classes), dtype="float32", name="classifier")
        self.classifier.build((None, backbone.output.shape[-1]))
        # Not the optimizer's count, which leaves out the steps that a loss scale of mixed_float16 skips.
        self.steps = self.add_weight(
            shape=(), dtype="int32", trainable=False, aggregation="only_first_replica", name="steps"
        )
        self.built = True

    def build(self, input_shape: Any) -> None:
        """Every layer is built by the constructor."""
        self.built = True

    def call(self, windows: Tensor, training: bool | None = None) -> Tensor:
        """Classify.

        Args:
            windows: (batch, 1, time, height, width, 3) uint8.
            training: whether clips are augmented, and batch norm uses the batch's statistics.

        Returns:
            (batch, classes) float32 logits; (crops * batch, classes) when not training.
        """
        clips = windows[:, 0]
        views = self.augmentation(clips) if training else even_crops(clips, self.views_config.size, self.crops)
        maps = self.backbone(views, training=training)
        return self.classifier(ops.mean(ops.cast(maps, "float32"), axis=(1, 2, 3)))

    def compute_loss(
        self,
        x: Tensor = None,
        y: Tensor = None,
        y_pred: Tensor = None,
        sample_weight: Tensor = None,
        training: bool = True,
    ) -> Tensor:
        """Cross-entropy and weight decay. Here and not in `call`, where weights are of the compute dtype."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if training:
            self.steps.assign_add(1)
        if training and self.weight_decay:
            squares = [ops.sum(ops.square(variable)) for variable in self.trainable_variables]
            # The gradients of the devices that share a batch are added up.
            loss = loss + 0.5 * self.weight_decay * sum(squares) / replica_count_of(self)
        return loss

    @property
    def steps_taken(self) -> int:
        """Steps trained in all."""
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
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "VideoClassifier":
        """A new model from what `get_config` gave."""
        config = dict(config)
        config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        config["backbone"] = keras.saving.deserialize_keras_object(config["backbone"])
        return cls(**config)


class ClipScorer(keras.Model):
    """A classifier at work: (clips, time, height, width, 3) uint8 -> (crops * clips, classes) logits, on one device.

    Devices that share a batch in training would each be given the whole of a batch to predict.

    Args:
        classifier: whose weights are shared.
    """

    def __init__(self, classifier: VideoClassifier, **kwargs: Any):
        super().__init__(**kwargs)
        self.classifier = classifier
        self.crops = classifier.crops
        self.built = True

    def call(self, clips: Tensor) -> dict[str, Tensor]:
        """Logits by the name "logits"."""
        return {"logits": self.classifier(clips[:, None], training=False)}


class ClipAugmentation(keras.layers.Layer):
    """A random crop, flip, colour and blur of each clip.

    Args:
        config: ranges and probabilities.
        seed: integer seed of the draws.
    """

    def __init__(self, config: ViewsConfig, seed: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.config = config
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, clips: Tensor) -> Tensor:
        """(batch, time, height, width, 3) uint8 -> (batch, time, size, size, 3) in the compute dtype, in [0, 1]."""
        replicas = ReplicaGroup()
        # Drawn for the whole batch on every device, so that results do not depend on their number.
        batch, frame_size = ops.shape(clips)[0] * replicas.count, clips.shape[2:4]
        geometry = draw_geometry(batch, frame_size, self.config, self.seed_generator)
        colour = draw_colour(batch, self.config, self.seed_generator)
        geometry, colour = replicas.local_part(geometry), replicas.local_part(colour)
        views = apply_geometry(ops.cast(clips, self.compute_dtype) / 255.0, geometry, self.config.size)
        return apply_colour(views, colour)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """(batch, time, size, size, 3)."""
        return (*input_shape[:2], self.config.size, self.config.size, 3)

    def save_own_variables(self, store: Any) -> None:
        """Keep the state of the draws, which Keras leaves out, so that a resumed run draws what it would have drawn."""
        store["seed_state"] = ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        """Restore the state of the draws."""
        self.seed_generator.state.assign(store["seed_state"][()])
