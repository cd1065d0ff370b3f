"""Kill processes of `evaluate` and `embed` at random moments, and compare the results with those of an undisturbed run.

Four processes run the same command at once on one disk. At random moments one of them is killed with SIGKILL and
another one takes its place. At the end, every result must have the same bytes as that of a single process that nobody
disturbed, and each kill may cost the work on one part at most.

    python benchmarks/kills.py [--kills 10] [--processes 4] [--seed 0]
"""

import argparse
import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from hdc_keras import Experiment
from hdc_keras.data.synthetic import MovingShapes, ensure_moving_shapes
from hdc_keras.evaluation.job import evaluate
from hdc_keras.evaluation.splits import load_splits
from hdc_keras.features import extraction
from hdc_keras.features.embed_job import embed
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.models import build_model

VIDEOS_PER_PART = 6
# Slows the encoding down, so that most kills hit a part that is being extracted.
SECONDS_PER_BATCH = 0.3


def main() -> None:
    """Kill, compare, and print a line for each command; exit with 1 if a file differs or too much is done again."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=10)
    options.add_argument("--processes", type=int, default=4)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    random.seed(asked.seed)
    extraction.VIDEOS_PER_PART = VIDEOS_PER_PART
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shapes = MovingShapes(2, 2)
        in_process(prepare, folder, ensure_moving_shapes(shapes).parent)
        for command in (run_evaluate, run_embed):
            in_process(command, folder, folder / f"{command.__name__}-alone")
            disturbed = folder / command.__name__
            killed = disturb(command, folder, disturbed, asked.kills, asked.processes)
            begun = Counter((disturbed / "log").read_text().split())
            again = sum(begun.values()) - len(begun)
            expected, found = (outputs(each) for each in (folder / f"{command.__name__}-alone", disturbed))
            equal = expected == found
            print(
                f"{command.__name__}: {killed} kills of {asked.processes} processes at once; {len(begun)} parts, "
                f"{again} extracted again; {len(found)} files, {'all equal' if equal else 'DIFFERENT'}",
                flush=True,
            )
            if not equal or again > killed:
                differ = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
                raise SystemExit("\n".join(["these differ:", *differ]))


def in_process(work, *arguments) -> None:
    """Run a function in a child process, because TensorFlow must not be in use when a process forks."""
    process = start(work, *arguments)
    process.join()
    assert process.exitcode == 0, f"{work.__name__} failed"


def start(work, *arguments) -> multiprocessing.Process:
    """Start a function in a child process."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def disturb(work, folder: Path, output: Path, kills: int, processes: int) -> int:
    """Run the work in several processes, and kill one of them at random moments. Returns the number of kills."""
    running = [start(work, folder, output) for _ in range(processes)]
    killed = 0
    while any(process.is_alive() for process in running):
        alive = [number for number, process in enumerate(running) if process.is_alive()]
        if killed < kills and (output / "log").exists():
            time.sleep(random.uniform(0.1, 1.5))
            number = random.choice(alive)
            if running[number].is_alive():
                running[number].kill()
                running[number].join()
                killed += running[number].exitcode == -9
                running[number] = start(work, folder, output)
        time.sleep(0.05)
    assert all(process.exitcode == 0 for process in running), [process.exitcode for process in running]
    return killed


def prepare(folder: Path, videos: Path) -> None:
    """Make a run with random weights."""
    experiment = Experiment.model_validate(
        {
            "data": {"path": str(videos), "frames": 4, "stride": 1, "decode_size": [20, 20]},
            "views": {"size": 16},
            "model": {"backbone": "r3d_tiny"},
            "evaluate": {"clips": 2, "batch_size": 2},
        }
    )
    run = RunDirectory(folder / "run")
    run.create(experiment)
    run.checkpoints.save(build_model(experiment), 1, 1)


def run_evaluate(folder: Path, output: Path) -> None:
    """`hdc-keras evaluate` with two frozen protocols."""
    log_parts(output)
    run = RunDirectory(folder / "run")
    experiment = run.experiment()
    evaluate(run, experiment, load_splits(experiment, "own")[0], ["knn", "retrieval"], out=output)


def run_embed(folder: Path, output: Path) -> None:
    """`hdc-keras embed`."""
    log_parts(output)
    run = RunDirectory(folder / "run")
    experiment = run.experiment()
    records = next(iter(load_splits(experiment, "own")[0].values()))
    embed(run, experiment, records, output / "videos.parquet", store=output / "features")


def log_parts(output: Path) -> None:
    """Write the videos of each part whose extraction begins to `log`, and slow the extraction down."""
    output.mkdir(parents=True, exist_ok=True)
    encode, batches = extraction.encode_videos, extraction.encoded_batches

    def logged(encoder, records, *arguments, **options):
        with (output / "log").open("a") as log:
            log.write(f"{records[0].video_id},{len(encoder.weights)},{float(encoder.weights[0][0, 0, 0, 0, 0]):.6f}\n")
        return encode(encoder, records, *arguments, **options)

    def slow(*arguments):
        for batch in batches(*arguments):
            time.sleep(SECONDS_PER_BATCH)
            yield batch

    extraction.encode_videos, extraction.encoded_batches = logged, slow


def outputs(folder: Path) -> dict[str, bytes]:
    """The content of every file under a final name. Locks and unfinished files begin with a dot."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "log" and not path.name.startswith(".")
    }


if __name__ == "__main__":
    main()
