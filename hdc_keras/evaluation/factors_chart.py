"""The decoupling meter's chart: which factor can be read from which level and task."""

import io
from typing import Any

import numpy as np


def draw_factors(result: dict[str, Any]) -> bytes:
    """Bars of the linear probe's top-1 by source and factor, beside random weights and chance.

    A decoupled model shows appearance in the spatial embeddings and motion in the temporal ones (our measure).

    Args:
        result: of the protocol `factors`, as `results/factors-{data}.json` holds it.

    Returns:
        A PNG file.
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
        untrained = [result["random_weights"][factor][source]["top1"] for source in sources]
        axes.bar(places, top1, 0.92 * width, color=f"C{number}", label=factor)
        axes.hlines(
            untrained,
            places - 0.46 * width,
            places + 0.46 * width,
            color="black",
            label="_again" if number else "random weights",  # matplotlib leaves out what begins with an underscore
        )
    for number, factor in enumerate(factors):
        label = f"chance, {factor}"
        axes.axhline(result["chance"][factor], color=f"C{number}", linestyle=(3 * number, (3, 3)), label=label)
    axes.set(ylim=(0, 1), ylabel="linear probe, top-1", title=f"What can be read from where: {result['dataset']}")
    axes.set_xticks(range(len(sources)), [source.replace(" ", "\n") for source in sources], fontsize=8)
    axes.legend(ncols=2 + len(factors), loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
