"""Measure how much of the contrast batch statistics give away, with local and with shuffled statistics.

Command: python benchmarks/statistics_leak.py [--steps 600] [--micro-batches 8] [--seeds 3]
Cost:    about 2 minutes for each seed and kind of statistics on 2 cores.

A tiny network is trained on moving shapes in cached micro-batches, whose batch norm has statistics of its own, as a
device has. `local` computes a positive in the micro-batch of its anchor, `shuffled` in random ones. The accuracy of the
contrast is then measured on the same batches in both ways, without an update. If a network uses the statistics, its
accuracy falls when they no longer tell which candidate is the positive. Chance is 1 / 32.
"""

import argparse
import dataclasses
import os
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

from hdc_keras.config import load_experiment
from hdc_keras.data.from_experiment import load_videos
from hdc_keras.training.batches import Batches, TrainingVideos
from hdc_keras.training.distribution import Distribution
from hdc_keras.training.models import build_model, compile_model

MEASURED_BATCHES = 40


def accuracies(model, batches, shuffles):
    """Mean accuracy over levels of each task, on some batches, without an update."""
    options = dataclasses.replace(model.step_options, shuffle_statistics=shuffles)
    before = model.step_options, model.get_weights()
    model.step_options = options
    model.optimizer.learning_rate = 0.0
    model.train_function = None  # traced again, with the other option
    logs = model.fit(batches, steps_per_epoch=MEASURED_BATCHES, verbose=0, shuffle=False).history
    model.step_options = before[0]
    model.set_weights(before[1])
    return {
        task: statistics.mean(value[-1] for name, value in logs.items() if name.endswith(f"{task}_accuracy"))
        for task in ("spatial", "temporal")
    }


def measure(statistics_kind, seed, arguments):
    """Train with one kind of statistics, and measure with both."""
    experiment = load_experiment(
        "configs/moving-shapes.yaml",
        [
            f"seed={seed}",
            "train.batch_size=32",
            f"train.micro_batches={arguments.micro_batches}",
            f"train.batch_norm={statistics_kind}",
        ],
    )
    records = load_videos(experiment).records
    videos = TrainingVideos.of(experiment, records)
    distribution = Distribution(experiment.train)
    model = build_model(experiment)
    optimizer = keras.optimizers.AdamW(experiment.train.learning_rate, weight_decay=1e-4)
    compile_model(model, optimizer, experiment.train, distribution)
    batches = Batches(videos.loader, None, None, distribution)
    model.fit(batches.from_step(0), steps_per_epoch=arguments.steps, verbose=0, shuffle=False)
    return {
        f"measured {name}": accuracies(model, batches.from_step(arguments.steps), shuffles)
        for name, shuffles in (("local", False), ("shuffled", True))
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    for kind in ("local", "shuffled"):
        for seed in range(arguments.seeds):
            found = measure(kind, seed, arguments)
            parts = [
                f"{how}: " + ", ".join(f"{task} {value:.3f}" for task, value in by_task.items())
                for how, by_task in found.items()
            ]
            print(f"trained {kind:8s} seed {seed}   {'   '.join(parts)}", flush=True)
            keras.utils.clear_session()


if __name__ == "__main__":
    main()
