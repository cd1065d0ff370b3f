import io

import numpy as np
from PIL import Image

from hdc_keras.evaluation.factors_chart import draw_factors

SOURCES = ("features", "P2", "P3", "P4", "P5", "spatial embeddings", "temporal embeddings", "all embeddings")


def chart_of(top1, random_weights=0.3, chance=0.25):
    """Pixels of the chart of two factors. The arguments belong to the first factor."""
    metrics, untrained = (
        {
            "appearance": {source: {"top1": value} for source in SOURCES},
            "motion": {source: {"top1": 0.6} for source in SOURCES},
        }
        for value in (top1, random_weights)
    )
    chances = {"appearance": chance, "motion": 0.25}
    result = {"metrics": metrics, "random_weights": untrained, "chance": chances, "dataset": "moving-shapes"}
    with Image.open(io.BytesIO(draw_factors(result))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def bar_pixels(chart):
    """Number of pixels in the colour of the first factor's bars."""
    return (np.abs(chart - (0x1F, 0x77, 0xB4)).max(axis=-1) < 8).sum()


def test_bars_grow_with_the_accuracy():
    low, high = bar_pixels(chart_of(0.4)), bar_pixels(chart_of(0.8))

    assert low > 1000 and 1.8 < high / low < 2.2


def test_random_weights_and_chance_are_drawn():
    chart = chart_of(0.8)

    assert (chart != chart_of(0.8, random_weights=0.5)).any()
    assert (chart != chart_of(0.8, chance=0.5)).any()
