import numpy as np
import pytest

from hdc_keras.training.callbacks import WarnOfCollapse, checkpoint_score
from hdc_keras.training.models import build_model
from tests.training.small_runs import changed, experiment_on, pretrain_run, run_of


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


def network_file(path, experiment, collapsed):
    """A file with a new network, or with one whose heads give every video the same embedding."""
    model = build_model(experiment)
    for head in model.objective.heads.values() if collapsed else ():
        head.projection.kernel.assign(np.zeros(head.projection.kernel.shape))
        head.projection.bias.assign(np.ones(head.projection.bias.shape))
    model.save(path)
    return {"init_from": str(path)}


@pytest.mark.parametrize("collapsed", [True, False])
def test_a_collapse_is_warned_of_once_and_recorded(class_folder, tmp_path, collapsed):
    experiment = experiment_on(class_folder, epochs=2, learning_rate=1e-9)
    section = {"model": network_file(tmp_path / "network.keras", experiment, collapsed)}
    run, said = run_of(tmp_path, changed(experiment, **section)), []

    pretrain_run(run, warn=said.append)

    deviations = [
        float(row[f"{pair}_deviation"]) for row in run.read_metrics() for pair in ("P2_spatial", "P3_temporal")
    ]
    if collapsed:
        assert max(deviations) < 1e-3
        (message,) = said
        assert message.startswith("Epoch 1: collapse. The embeddings of all videos are almost equal")
        assert "P2 spatial" in message and "P3 temporal" in message and "train.learning_rate" in message
    else:
        assert min(deviations) > 0.1 and said == []


def test_a_collapse_is_warned_of_again_after_a_recovery_and_not_when_all_steps_were_skipped():
    said, watch = [], WarnOfCollapse(lambda message: said.append(message[:8]))
    watch.on_epoch_end(0, {"loss": 0.0, "P2_spatial_deviation": 0.0})

    for epoch, deviation in enumerate([0.0, 0.0, 0.8, 0.01], 1):
        watch.on_epoch_end(epoch, {"loss": 1.0, "P2_spatial_deviation": deviation})

    assert said == ["Epoch 2:", "Epoch 5:"]
