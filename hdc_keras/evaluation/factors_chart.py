"""The chart of the protocol `factors`: which factor can be predicted from which level and task."""

import io
from typing import Any

import numpy as np


def draw_factors(result: dict[str, Any]) -> bytes:
    """Draw the top-1 accuracy of the linear probe by source and factor, beside chance and, if known, random weights.

    In a decoupled model, appearance can be predicted from the spatial embeddings and motion from the temporal ones.

    Args:
        result: the result of the protocol `factors`, as in `results/factors-{data}.json`.

    Returns:
        The chart as a PNG file.
    """
    from matplotlib.figure import Figure

    factors = list(result["metrics"])
    sources = list(result["metrics"][factors[0]])
    figure = Figure(figsize=(1.5 + 0.75 * len(sources), 5), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(factors)
    for number, factor in enumerate(factors):
        places = np.arange(len(sources)) + (number - (len(factors) - 1) / 2) * width
        top1 = [result["metrics"][factor][source]["top1"] for source in sources]
        axes.bar(places, top1, 0.92 * width, color=f"C{number}", label=factor)
        if "random_weights" not in result:  # as for vectors from elsewhere
            continue
        untrained = [result["random_weights"][factor][source]["top1"] for source in sources]
        axes.hlines(
            untrained,
            places - 0.46 * width,
            places + 0.46 * width,
            color="black",
            label="_repeated" if number else "random weights",  # the legend omits labels that begin with an underscore
        )
    for number, factor in enumerate(factors):
        label = f"chance, {factor}"
        axes.axhline(result["chance"][factor], color=f"C{number}", linestyle=(3 * number, (3, 3)), label=label)
    axes.set(ylim=(0, 1), ylabel="linear probe, top-1", title=f"What each level and task encodes: {result['dataset']}")
    axes.set_xticks(range(len(sources)), [source.replace(" ", "\n") for source in sources], fontsize=8)
    axes.legend(ncols=2 + len(factors), loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
