import numpy as np
from keras import ops

from hdc_keras.finetuning.optimizer import recipe_optimizer
from hdc_keras.finetuning.recipes import FINE_TUNING
from tests.finetuning.small_job import EXPERIMENT


def learning_rates(name, epochs, steps_per_epoch):
    """(epochs, steps_per_epoch) learning rate of each step."""
    settings = EXPERIMENT.evaluate.model_copy(update={"finetune_epochs": epochs})
    recipe = FINE_TUNING[name].applied(EXPERIMENT.model_copy(update={"evaluate": settings}))
    optimizer = recipe_optimizer(recipe, steps_per_epoch)
    rates = []
    for step in range(epochs * steps_per_epoch):
        optimizer.iterations.assign(step)
        rates.append(float(ops.convert_to_numpy(optimizer.learning_rate)))
    return np.array(rates).reshape(epochs, steps_per_epoch)


def test_the_learning_rate_of_vcop_is_constant():
    np.testing.assert_allclose(learning_rates("finetune-vcop", 2, 3), 1e-3, rtol=1e-5)


def test_the_learning_rate_of_severe_drops_three_times():
    expected = 1e-4 * 0.3 ** np.repeat([0, 1, 2, 3], [6, 4, 4, 2])
    np.testing.assert_allclose(learning_rates("finetune-severe", 16, 2), np.stack([expected] * 2, axis=1), rtol=1e-4)


def test_the_learning_rate_of_rspnet_is_a_cosine_that_moves_per_epoch_down_to_a_thousandth():
    cosine = 1e-4 + 0.5 * (0.1 - 1e-4) * (1 + np.cos(np.pi * np.arange(4) / 4))
    np.testing.assert_allclose(learning_rates("finetune-rspnet", 4, 2), np.stack([cosine] * 2, axis=1), rtol=1e-4)


def test_a_schedule_is_saved_with_its_optimizer():
    optimizer = recipe_optimizer(FINE_TUNING["finetune-rspnet"], 7)

    restored = type(optimizer).from_config(optimizer.get_config())

    restored.iterations.assign(100)
    optimizer.iterations.assign(100)
    assert float(restored.learning_rate) == float(optimizer.learning_rate) < 0.1


def test_optimizers_and_momentum_are_those_of_the_recipes():
    found = {name: recipe_optimizer(recipe.applied(EXPERIMENT), 1) for name, recipe in FINE_TUNING.items()}

    names = {name: type(optimizer).__name__ for name, optimizer in found.items()}
    assert names == {"finetune-vcop": "PyTorchSGD", "finetune-rspnet": "PyTorchSGD", "finetune-severe": "Adam"}
    assert found["finetune-vcop"].momentum == found["finetune-rspnet"].momentum == 0.9
    assert found["finetune-severe"].epsilon == 1e-8  # as in PyTorch
