"""Loads weights of torchvision's video ResNets from a file: a supervised initialisation, or a supervised upper bound.

Source of the layout: torchvision/models/video/resnet.py (`r3d_18`, `mc3_18`, `r2plus1d_18`).
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from keras import layers

from hdc_keras.backbones.r2plus1d import R2Plus1D
from hdc_keras.backbones.resnet3d import VideoResNet
from hdc_keras.backbones.video_backbone import VideoBackbone
from hdc_keras.errors import WeightsError

# PyTorch's names for a layer's variables, in the order in which Keras lists them.
_CONVOLUTION = ("weight",)
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def load_torchvision_weights(backbone: VideoBackbone, path: str | Path) -> None:
    """Load a state dict of torchvision into the corresponding backbone. The classifier in the file is ignored.

    Reading the file needs PyTorch, whatever the active backend.

    Args:
        backbone: an `R3D`, `MC3` or `R2Plus1D` with torchvision's numbers of channels and blocks.
        path: a `.pth` file, such as `r3d_18-b3b3357e.pth`.

    Raises:
        WeightsError: the file cannot be read or holds another network, or torchvision has no such backbone. The
            backbone keeps its previous weights.
    """
    if not isinstance(backbone, VideoResNet):
        raise WeightsError(
            f"torchvision has no weights for `{backbone.name}`. It has weights for r3d18, mc3_18 and r2plus1d18."
        )
    state = _read(Path(path))
    factorised = isinstance(backbone, R2Plus1D)
    values: list[tuple[Any, list[np.ndarray]]] = []
    problems = []
    for layer in backbone.layers:
        if not layer.weights or layer.name == "normalise_pixels":
            continue
        prefix = _torchvision_name(layer.name, factorised)
        kinds = _CONVOLUTION if isinstance(layer, layers.Conv3D) else _BATCH_NORM
        arrays = [state.get(f"{prefix}.{kind}") for kind in kinds]
        for kind, array, variable in zip(kinds, arrays, layer.weights, strict=True):
            expected = tuple(variable.shape)
            found = None if array is None else _in_keras_order(array).shape
            if found != expected:
                problems.append(
                    f"{prefix}.{kind}: expected {expected}, " + ("missing" if found is None else f"{found}")
                )
        if not problems:
            values.append((layer, [_in_keras_order(array) for array in arrays if array is not None]))
    known = {_torchvision_name(layer.name, factorised) for layer in backbone.layers if layer.weights}
    unexpected = [key for key in state if key.rpartition(".")[0] not in known and not _is_ignored(key)]
    problems += [f"{key}: unexpected" for key in unexpected]
    if problems:
        raise WeightsError(
            f"{path} does not hold the weights of `{backbone.name}`:\n  "
            + "\n  ".join(problems[:5])
            + (f"\n  and {len(problems) - 5} more" if len(problems) > 5 else "")
        )
    for layer, weights in values:
        layer.set_weights(weights)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(f"{path}: reading a .pth file needs PyTorch: pip install torch") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.numpy() for name, tensor in state.items()}
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # torch raises many types of errors for files in other formats
        raise WeightsError(f"{path}: is not a PyTorch state dict ({' '.join(str(error).split())[:200]})") from error


def _in_keras_order(array: np.ndarray) -> np.ndarray:
    """Kernels from (out, in, time, height, width) to (time, height, width, in, out); vectors unchanged."""
    return array if array.ndim == 1 else array.transpose(2, 3, 4, 1, 0)


def _is_ignored(key: str) -> bool:
    return key.startswith("fc.") or key.endswith("num_batches_tracked")


def _torchvision_name(name: str, factorised: bool) -> str:
    """Name of the PyTorch module that holds the weights of a Keras layer."""
    name, part = name.rsplit("_", 1)
    is_norm = part == "norm"
    if name == "stem_spatial":
        return f"stem.{int(is_norm)}"
    if name == "stem":
        return f"stem.{int(is_norm) + (3 if factorised else 0)}"
    match = re.fullmatch(r"stage(\d)_block(\d+)_(shortcut|[12])(_spatial)?", name)
    if not match:
        return name  # normalise_pixels, which is not part of torchvision's model
    stage, block, place, spatial = match.groups()
    module = f"layer{int(stage) - 1}.{int(block) - 1}"
    if place == "shortcut":
        return f"{module}.downsample.{int(is_norm)}"
    if spatial:
        return f"{module}.conv{place}.0.{int(is_norm)}"
    return f"{module}.conv{place}.1" if is_norm else f"{module}.conv{place}.0" + (".3" if factorised else "")
