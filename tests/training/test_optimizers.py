import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras.config import Length, TrainConfig
from hdc_keras.training.optimizers import LARS, PyTorchSGD, WarmupCosine, build_optimizer


def test_lars_follows_the_update_of_the_paper():
    # Algorithm 1 of arXiv 1708.03888, in numpy.
    rng = np.random.default_rng(0)
    weights = {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3), "zeros": np.zeros((2, 2))}
    weights = {name: value.astype("float32") for name, value in weights.items()}
    variables = [keras.Variable(value, name=name) for name, value in weights.items()]
    schedule = WarmupCosine(0.5, 2, 6)
    optimizer = LARS(schedule, momentum=0.9, weight_decay=0.01, trust=0.02)
    velocity = {name: np.zeros_like(value) for name, value in weights.items()}
    for step in range(4):
        gradients = {name: rng.normal(size=value.shape).astype("float32") for name, value in weights.items()}
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients.values()], variables)
        rate = float(schedule(step))
        for name, w in weights.items():
            g, local, decay = gradients[name], 1.0, 0.0
            if name != "bias":
                decay, norm = 0.01, np.linalg.norm(w)
                if norm > 0:
                    local = 0.02 * norm / (np.linalg.norm(g) + decay * norm)
            velocity[name] = 0.9 * velocity[name] + rate * local * (g + decay * w)
            weights[name] = w - velocity[name]

        for variable, w in zip(variables, weights.values(), strict=True):
            np.testing.assert_allclose(ops.convert_to_numpy(variable), w, atol=1e-6)


def test_lars_is_restored_from_its_config():
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(LARS(0.3, 0.8, 0.02, 0.01)))

    assert isinstance(optimizer, LARS)
    assert (optimizer.momentum, optimizer.decay, optimizer.trust) == (0.8, 0.02, 0.01)


@pytest.mark.parametrize("rule, expected", [("none", 0.1), ("linear", 0.4), ("sqrt", 0.2)])
def test_the_learning_rate_is_scaled_with_the_batch_size_by_the_chosen_rule(rule, expected):
    train = TrainConfig(learning_rate=0.1, batch_size=1024, scale_learning_rate=rule, epochs=10, warmup_epochs=1)
    schedule = build_optimizer(train, train.length(10))._learning_rate

    assert train.peak_learning_rate == pytest.approx(expected)
    assert max(float(schedule(step)) for step in range(100)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_every_optimizer_has_the_schedule(name):
    optimizer = build_optimizer(TrainConfig(optimizer=name, warmup_epochs=1, learning_rate=0.2), Length(5, 20))

    assert optimizer._learning_rate.get_config() == {"peak": 0.2, "warmup_steps": 5, "total_steps": 20}


def test_the_schedule_warms_up_linearly_and_ends_at_zero():
    schedule = WarmupCosine(0.4, 10, 110)

    assert float(schedule(0)) == pytest.approx(0.04) and float(schedule(9)) == pytest.approx(0.4)
    for step in (10, 35, 60, 85, 110, 200):
        progress = min(1, (step - 10) / 100)
        assert float(schedule(step)) == pytest.approx(0.2 * (1 + np.cos(np.pi * progress)), abs=1e-6)


def test_a_run_shorter_than_its_warm_up_warms_up_for_half_the_run():
    schedule = build_optimizer(TrainConfig(warmup_epochs=10), Length(5, 20))._learning_rate

    assert schedule.get_config()["warmup_steps"] == 10


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_weight_decay_excludes_biases_and_norms(name):
    model = keras.Sequential([keras.layers.Dense(3, bias_initializer="ones"), keras.layers.BatchNormalization()])
    model.build((None, 2))
    optimizer = build_optimizer(TrainConfig(optimizer=name, weight_decay=0.1), Length(10, 2000))
    before = model.get_weights()

    optimizer.apply([ops.zeros_like(v) for v in model.trainable_variables], model.trainable_variables)

    changed = {v.name for v, old in zip(model.weights, before, strict=True) if not np.array_equal(v, old)}
    assert changed == {"kernel"}


def updated(optimizer, gradients):
    """A kernel and a bias after an update with each of some gradients."""
    kernel = keras.Variable(np.linspace(-1, 2, 6).reshape(3, 2), name="kernel")
    bias = keras.Variable(np.linspace(1, 2, 2), name="bias")
    optimizer.build([kernel, bias])
    for of_kernel, of_bias in gradients:
        optimizer.apply([ops.convert_to_tensor(of_kernel), ops.convert_to_tensor(of_bias)], [kernel, bias])
    return [ops.convert_to_numpy(v) for v in (kernel, bias)]


def updated_by_pytorch(make, gradients):
    torch = pytest.importorskip("torch")
    kernel, bias = (torch.linspace(-1, 2, 6).reshape(3, 2), torch.linspace(1, 2, 2))
    optimizer, schedule = make(torch, kernel, bias)
    for of_kernel, of_bias in gradients:
        kernel.grad, bias.grad = torch.from_numpy(of_kernel), torch.from_numpy(of_bias)
        optimizer.step()
        schedule.step()
    return [kernel.numpy(), bias.numpy()]


def cosine(step):
    return (1 + np.cos(np.pi * step / 10)) / 2


class TestPyTorch:
    """Ten updates are those of PyTorch's own optimizers, with decay of kernels and a changing learning rate."""

    @pytest.fixture
    def gradients(self):
        rng = np.random.default_rng(0)
        return [(rng.normal(size=(3, 2)).astype("float32"), rng.normal(size=2).astype("float32")) for _ in range(10)]

    def pytorch(self, name, **options):
        def make(torch, kernel, bias):
            groups = [{"params": [kernel]}, {"params": [bias], "weight_decay": 0.0}]
            optimizer = getattr(torch.optim, name)(groups, lr=0.1, **options)
            return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)

        return make

    @pytest.mark.parametrize("nesterov", [False, True])
    def test_sgd(self, gradients, nesterov):
        optimizer = PyTorchSGD(WarmupCosine(0.1, 0, 10), 0.9, nesterov, weight_decay=0.3)
        expected = self.pytorch("SGD", momentum=0.9, nesterov=nesterov, weight_decay=0.3)

        found = zip(updated(optimizer, gradients), updated_by_pytorch(expected, gradients), strict=True)
        for one, other in found:
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)

    def test_adamw(self, gradients):
        optimizer = build_optimizer(
            TrainConfig(optimizer="adamw", learning_rate=0.1, warmup_epochs=0, weight_decay=0.3), Length(1, 10)
        )
        expected = self.pytorch("AdamW", weight_decay=0.3, eps=1e-7)  # the epsilon of Keras

        found = zip(updated(optimizer, gradients), updated_by_pytorch(expected, gradients), strict=True)
        for one, other in found:
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)

    def test_the_weight_decay_of_keras_would_be_ten_times_weaker(self):
        zero = [(np.zeros((3, 2), "float32"), np.zeros(2, "float32"))] * 100
        start = np.linspace(-1, 2, 6).reshape(3, 2)
        ours = updated(PyTorchSGD(1e-3, 0.9, weight_decay=1e-2), zero)[0] / start - 1
        keras_own = updated(keras.optimizers.SGD(1e-3, 0.9, weight_decay=1e-2), zero)[0] / start - 1

        assert np.mean(ours / keras_own) == pytest.approx(10, rel=0.12)  # after the momentum has built up

    def test_each_optimizer_has_a_weight_decay_of_its_own(self):
        found = {
            name: build_optimizer(TrainConfig(optimizer=name), Length(10, 2000)) for name in ("sgd", "adamw", "lars")
        }

        assert (found["sgd"].decay, found["adamw"].weight_decay, found["lars"].decay) == (1e-4, 0.05, 1e-6)
