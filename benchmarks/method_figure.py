"""Draw `docs/images/method.png`: the method in one picture, with real views of a rendered video.

Command: python benchmarks/method_figure.py
Cost:    5 seconds.
"""

import argparse
from pathlib import Path

import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from hdc_keras.config import TaskLevels, load_experiment
from hdc_keras.data.synthetic import MovingShapes, render_video
from hdc_keras.views.generator import ViewGenerator

ROOT = Path(__file__).resolve().parent.parent
FRAMES = 5
SPATIAL, TEMPORAL, NETWORK = "#1f77b4", "#d95f02", "#dddddd"
LEVELS = ("P2", "P3", "P4", "P5")
ROWS = {"anchor": 5.2, "spatial_positive": 3.45, "temporal_positive": 1.7}
DEFINITIONS = {
    "anchor": r"anchor  $x = s(v[t_a])$",
    "spatial_positive": r"spatial positive  $x_s = s(v[t_s])$, other colours",
    "temporal_positive": r"temporal positive  $x_t = s'(v[t_a])$",
}


def make_views() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Frames of two windows, shape (2, FRAMES, height, width, 3), and of each view, (FRAMES, size, size, 3)."""
    views = load_experiment(ROOT / "configs" / "moving-shapes.yaml").views.model_copy(
        update={"fade_static": 1.0, "crop_area": (0.7, 1.0)}
    )
    video = render_video(MovingShapes(), "checks", "right", 3)
    windows = np.stack([video[0 : 2 * FRAMES : 2], video[16 : 16 + 2 * FRAMES : 2]])
    generator = ViewGenerator(views.model_copy(update={"size": 64}), seed=5)
    clips = keras.ops.convert_to_numpy(generator(windows[None]))
    return windows, dict(zip(generator.view_names, clips, strict=True))


def strip(axes: Axes, frames: np.ndarray, x: float, y: float, side: float) -> None:
    """Draw frames side by side, with the lower left corner at (x, y)."""
    for number, frame in enumerate(frames):
        left = x + number * side * 1.06
        axes.imshow(frame, extent=(left, left + side, y, y + side), zorder=2)


def box(axes: Axes, x: float, y: float, size: tuple[float, float], text: str, colour: str, alpha: float = 1.0) -> None:
    """Draw a rounded box with centred text."""
    patch = FancyBboxPatch((x, y), *size, boxstyle="round,pad=0.02", facecolor=colour, edgecolor="black", alpha=alpha)
    axes.add_patch(patch)
    axes.text(x + size[0] / 2, y + size[1] / 2, text, ha="center", va="center", fontsize=9)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = "black") -> None:
    """Draw an arrow from start to end."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0})


def draw(path: Path) -> None:
    """Draw the figure and save it as a PNG file."""
    windows, views = make_views()
    figure, axes = plt.subplots(figsize=(15, 7))
    for name, frames, y in (("$v[t_a]$", windows[0], 4.5), ("$v[t_s]$", windows[1], 2.6)):
        axes.text(0.1, y + 0.85, f"window {name}", fontsize=10)
        strip(axes, frames, 0.1, y, 0.7)
    axes.text(0.1, 6.75, "two windows of one video", fontsize=11, weight="bold")
    axes.text(4.9, 6.75, "views: two draws of augmentation, $s$ and $s'$", fontsize=11, weight="bold")
    for name, y in ROWS.items():
        axes.text(4.9, y + 1.0, DEFINITIONS[name], fontsize=10)
        strip(axes, views[name], 4.9, y, 0.85)
    arrow(axes, (3.95, 4.9), (4.8, 5.6))
    arrow(axes, (3.95, 4.75), (4.8, 2.2))
    arrow(axes, (3.95, 2.95), (4.8, 3.85))
    for y, colour, text in (
        (5.0, SPATIAL, "share appearance,\ndiffer in time"),
        (2.75, TEMPORAL, "share what happens,\ndiffer in appearance"),
    ):
        axes.text(9.72, y, text, color=colour, fontsize=9, va="center")
    axes.plot([9.45, 9.53, 9.53, 9.45], [5.9, 5.9, 4.0, 4.0], color=SPATIAL, linewidth=2)
    axes.plot([9.45, 9.6, 9.6, 9.45], [5.5, 5.5, 2.1, 2.1], color=TEMPORAL, linewidth=2)
    axes.text(12.2, 6.75, "one 3D network, a loss at each stage", fontsize=11, weight="bold")
    arrow(axes, (9.7, 3.5), (12.2, 3.5))
    for number, level in enumerate(LEVELS):
        x, half = 12.3 + 1.45 * number, 0.75 - 0.13 * number
        box(axes, x, 3.5 - half, (0.85, 2 * half), level, NETWORK)
        if number < len(LEVELS) - 1:
            arrow(axes, (x + 0.9, 3.5), (x + 1.4, 3.5))
        for task, sign, colour in (("spatial", 1, SPATIAL), ("temporal", -1, TEMPORAL)):
            if level not in getattr(TaskLevels(), task):
                continue
            end = 3.5 + sign * 1.15
            arrow(axes, (x + 0.42, 3.5 + sign * (half + 0.05)), (x + 0.42, end), colour)
            box(axes, x - 0.1, min(end, end + sign * 0.45), (1.05, 0.45), f"{task}", colour, 0.45)
            axes.text(
                x + 0.42,
                3.5 + sign * 1.95,
                rf"$w^{{{task[0]}}}_{{{level[1]}}} L^{{{task[0]}}}_{{{level[1]}}}$",
                ha="center",
                va="center",
                fontsize=12,
            )
    axes.text(
        10.6,
        0.75,
        r"$L = \sum_l \left( w^s_l L^s_l + \lambda\, w^t_l L^t_l \right)$,   $L$: InfoNCE against the other videos"
        "\n"
        r"$w_l \propto i_l^{\gamma}$,   $i_l$: invariance at stage $l$: cos(positive pairs) - cos(negative pairs)",
        fontsize=10,
        va="center",
    )
    axes.set(xlim=(0, 18), ylim=(0.3, 7.1), aspect="equal")
    axes.axis("off")
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    draw(ROOT / "docs" / "images" / "method.png")
