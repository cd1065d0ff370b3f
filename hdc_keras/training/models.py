"""Build the model of an experiment, give it its initial weights, and compile it for the devices."""

import keras

from hdc_keras.backbones import build_backbone
from hdc_keras.backbones.torchvision_weights import load_torchvision_weights
from hdc_keras.config import Experiment, Length, TrainConfig
from hdc_keras.devices import dtype_policy, uses_xla
from hdc_keras.model import HDC
from hdc_keras.training.distribution import Distribution, synchronise_batch_norm
from hdc_keras.training.initial_weights import copy_weights
from hdc_keras.training.optimizers import build_optimizer


def build_model(experiment: Experiment) -> HDC:
    """The experiment's model, with random weights from its seed, or weights from `model.weights` or `model.init_from`.

    Raises:
        RunError: the weights of `model.init_from` cannot be read, or belong to a different backbone.
        WeightsError: the weights of `model.weights` cannot be read, or belong to a different backbone.
    """
    keras.utils.set_random_seed(experiment.seed)
    with dtype_policy(experiment.train.precision):
        backbone = build_backbone(experiment.model.backbone)
        if experiment.model.weights:
            load_torchvision_weights(backbone, experiment.model.weights)
        model = HDC(
            backbone, experiment.views, experiment.contrast, seed=experiment.seed, ema=experiment.train.ema, name="hdc"
        )
    if experiment.model.init_from:
        copy_weights(model, experiment.model.init_from)
    return model


def compiled_model(experiment: Experiment, length: Length, distribution: Distribution) -> HDC:
    """A new model, ready to train. Call this in the scope of the distribution."""
    model = build_model(experiment)
    compile_model(model, build_optimizer(experiment.train, length), experiment.train, distribution)
    return model


def compile_model(
    model: HDC, optimizer: keras.optimizers.Optimizer, train: TrainConfig, distribution: Distribution
) -> None:
    """Compile a model with the settings of `train`, for the devices of the distribution."""
    # On TensorFlow, synchronised batch norm communicates inside the backbone, which XLA cannot compile.
    synchronises = distribution.synchronises_batch_norm and keras.backend.backend() == "tensorflow"
    if synchronises:
        synchronise_batch_norm(model.backbone)
    model.compile(
        optimizer,
        jit_compile=uses_xla(train.jit) and not synchronises,
        micro_batches=train.micro_batches,
        accumulate=train.accumulate,
        rematerialise=train.rematerialise,
        clip_norm=train.clip_norm,
        shuffle_statistics=train.batch_norm != "local" and not synchronises,
    )
