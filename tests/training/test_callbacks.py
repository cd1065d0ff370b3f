import pytest

from hdc_keras.training.callbacks import checkpoint_score


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        ({"loss": 2.0}, ("loss", -2.0)),
        ({"loss": 2.0, "val_loss": 3.0}, ("loss", -3.0)),
        ({"loss": 2.0, "knn_train_label": 0.25}, ("knn_train", 0.25)),
        ({"loss": 2.0, "val_loss": 3.0, "knn_train_appearance": 0.75, "knn_train_motion": 0.25}, ("knn_train", 0.5)),
    ],
)
def test_a_checkpoint_is_judged_by_its_knn_checks_or_else_by_its_loss(logs, expected):
    assert checkpoint_score(logs) == expected
