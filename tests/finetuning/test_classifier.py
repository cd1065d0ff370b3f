import keras
import numpy as np
from keras import ops

from hdc_keras.finetuning.classifier import VideoClassifier
from tests.finetuning.small_job import SIZE
from tests.plain_backbone import PlainConvolutions

NOT_AUGMENTED = {"size": 16, "crop_area": (1.0, 1.0), "flip": 0, "jitter": 0, "grey": 0, "blur": 0}
WINDOWS = np.random.default_rng(0).integers(0, 255, (4, 1, 4, *SIZE, 3), dtype=np.uint8)


def classifier(views=NOT_AUGMENTED, **keywords):
    keras.utils.set_random_seed(0)
    return VideoClassifier(PlainConvolutions(), ["a", "b"], views, **keywords)


def weights_of(model):
    return [ops.convert_to_numpy(variable).copy() for variable in model.trainable_variables]


def test_weight_decay_is_part_of_the_gradient_of_every_weight():
    def trained(weight_decay):
        model = classifier(weight_decay=weight_decay)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
        before = weights_of(model)
        model.fit(WINDOWS, np.array([0, 1, 0, 1]), batch_size=4, epochs=1, verbose=0)
        return before, weights_of(model), model.steps_taken

    (before, plain, steps), (_, decayed, _) = trained(0.0), trained(0.2)

    assert steps == 1
    for start, without, with_decay in zip(before, plain, decayed, strict=True):
        np.testing.assert_allclose(without - with_decay, 0.1 * 0.2 * start, atol=2e-5)


def test_the_initial_weights_of_the_classifier_are_those_of_pytorch():
    keras.utils.set_random_seed(0)
    model = VideoClassifier(PlainConvolutions(), [f"{number}" for number in range(500)], NOT_AUGMENTED)

    for weights in model.classifier.get_weights():  # uniform, within 1 / sqrt(10 channels)
        assert 0.95 * 10**-0.5 < np.abs(weights).max() <= 10**-0.5
        assert abs(weights.std() - (10 * 3) ** -0.5) < 0.02


def test_clips_are_augmented_only_in_training():
    model = classifier(NOT_AUGMENTED | {"flip": 0.5, "crop_area": (0.3, 0.6)})

    def logits(training):
        return ops.convert_to_numpy(model(WINDOWS, training=training))

    np.testing.assert_array_equal(logits(False), logits(False))
    assert np.abs(logits(True) - logits(True)).max() > 1e-6


def test_crops_are_stacked_along_the_batch():
    three, one = classifier(crops=3), classifier(crops=1)

    crops, middle = (ops.convert_to_numpy(model(WINDOWS, training=False)) for model in (three, one))

    assert crops.shape == (12, 2) and middle.shape == (4, 2)
    np.testing.assert_allclose(crops[4:8], middle, atol=1e-6)


def test_a_saved_classifier_continues_the_sequence_of_augmentations(tmp_path):
    model = classifier(NOT_AUGMENTED | {"flip": 0.5, "crop_area": (0.3, 0.6)})
    model(WINDOWS, training=True)
    model.save(tmp_path / "classifier.keras")
    expected = ops.convert_to_numpy(model(WINDOWS, training=True))

    with keras.saving.custom_object_scope({"PlainConvolutions": PlainConvolutions}):
        loaded = keras.saving.load_model(tmp_path / "classifier.keras")

    assert loaded.classes == ["a", "b"]
    np.testing.assert_allclose(ops.convert_to_numpy(loaded(WINDOWS, training=True)), expected, atol=1e-6)
