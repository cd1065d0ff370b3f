"""Torchvision's Kinetics weights on the command line: a run starts from them and is compared with them."""

import json

import pytest

torch = pytest.importorskip("torch", reason="reading .pth files needs PyTorch: pip install -e '.[torch]'")
pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]


def test_a_run_starts_from_supervised_weights_and_is_compared_with_them(
    tmp_path, class_folder, hdc_keras_command, hdc_keras_in_process
):
    from tests.backbones.test_torchvision_weights import Network

    torch.save(Network("r3d18").state_dict(), tmp_path / "r3d_18.pth")
    small = ["data.frames=4", "data.decode_size=[32, 32]", "views.size=32", "train.epochs=1", "train.batch_size=4"]
    small += ["train.warmup_epochs=0", "model.backbone=r3d18", "model.weights=r3d_18.pth"]
    small += ["train.precision=float32"]  # on a CPU, TensorFlow's gradients in bfloat16 are wrong
    sets = [argument for value in small for argument in ("--set", value)]

    done = hdc_keras_command("pretrain", "--config", "videos", "--data", class_folder, *sets, "--run", "run")
    assert done.code == 0, done.out
    done = hdc_keras_in_process(
        *("evaluate", "--run", "run", "--protocol", "linear", "--supervised", "r3d_18.pth"),
        *("--set", "evaluate.clips=1"),
    )
    assert done.code == 0, done.out
    assert "with supervised weights" in " ".join(done.out.split())

    result = json.loads(next((tmp_path / "run" / "results").glob("linear-*.json")).read_text())
    judged = {key: set(result[key]["label"]) for key in ("metrics", "random_weights", "supervised")}
    assert judged["supervised"] == {"features", "P2", "P3", "P4", "P5"} < judged["metrics"] == judged["random_weights"]
