"""Draw wrong invocations of `hdc-keras` at random, and check that each is refused as a user can understand.

Paths, keys, values, options, layouts of data, damaged runs and damaged prepared sets are combined from a seed. Each
invocation has a folder of its own with eight videos, a run and a prepared set. It must end with an exit code other than
0, within a minute, without a traceback, in 40 lines or fewer, and leave no unfinished file under a final name.

    python benchmarks/fuzz_commands.py [--count 300] [--seed 0] [--show]
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["COLUMNS"] = "200"

# Imported here, so that the processes that are forked need not import them.
import hdc_keras.evaluation.job
import hdc_keras.export
import hdc_keras.features.embed_job
import hdc_keras.report.job
import hdc_keras.training.pretraining  # noqa: F401
from hdc_keras import Experiment
from hdc_keras.data.preparing import prepare
from hdc_keras.data.records import read_records
from hdc_keras.data.synthetic import MovingShapes, render_video, write_video
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.models import build_model

MOST_LINES = 40
MOST_SECONDS = 60
# Every command on valid arguments, into which a wrong part is drawn.
EVALUATE = ["evaluate", "--run", "run", "--protocol", "knn"]
EMBED = ["embed", "--run", "run", "--out", "out.parquet"]
Damage = Callable[[Path, random.Random], object]


@dataclass
class Invocation:
    """A wrong command line.

    Attributes:
        arguments: what follows `hdc-keras`.
        damage: what is done to the folder first.
        environment: variables to set; such an invocation runs in a process of its own.
    """

    arguments: list[str]
    damage: Damage | None = None
    environment: dict[str, str] | None = None


BAD_PATHS = [
    "",
    "nowhere",
    "nowhere [x]",
    "clips #1",
    "has: colon",
    "n\u00f6 \u4e2d\u6587",
    "a" * 300,
    "new\nline",
    "[/b]",
    "~nobody/x",
    "empty",
    "hidden",
    "circle",
    "binary.csv",
    "ftp://host/videos",
    "zip://a.zip::file://b",
    "http://",
    "run/config.yaml",
    "/proc/self/mem",
]
BAD_SETTINGS = [
    *("nokey=1", "train=1", "train.epochs", "train.epochs=", "train.epochs=ten", "=3", "train..x=1", "train.epochs=-1"),
    *(
        "train.epochs=0",
        "train.epochs=1.5",
        "train.epochs=.nan",
        "train.epochs=1e400",
        "train.epochs=[",
        "train.epochs={a: 1}",
    ),
    *("data.frames=0", "data.decode_size=[1]", "data.decode_size=abc", "data.decode_size=[0, 0]", "data.stride=-2"),
    *("views.size=-5", "views.size=abc", "model.backbone=resnet", "contrast.levels.spatial=[P9]", "seed=-1"),
    *("seed=4294967296", "seed=1.5", "evaluate.clips=1000000000", "evaluate.seeds=0", "data.max_failed_share=2"),
    *("data.holdout=1.5", "data.cache_gb=-1", "train.optimizer=foo", "train.precision=float17", "train.accumulate=x"),
    *("train.jit=maybe", "data.layout=nope", "data.official_split=7", "data.decoder=x", "train.path=x", "data: {"),
    *("evaluate.linear_l2=[]", "train.learning_rate=.inf", "\x00", "a.b.c.d=1", "data.limit=0"),
]
BAD_PARTS = ["0/0", "3/2", "x", "1", "1/0", "-1/2", "1/2/3", "", "1.5/2"]
BAD_OPTIONS = [
    ["--preset", "nope"],
    ["--config", "nope"],
    ["--config", "run"],
    ["--nope"],
    ["extra"],
    ["--set"],
    ["--run", "videos/across/0.mp4"],
    ["--run", "videos"],
    ["--run", "run"],
    ["--init-from", "videos"],
    ["--init-from", "binary.csv"],
    ["--init-from", "nowhere"],
]
MANIFESTS = {
    "no path column": b"file,label\nvideos/across/0.mp4,a\n",
    "only a header": b"path,label\n",
    "empty": b"",
    "missing files": b"path,label\nnone.mp4,a\nnone2.mp4,b\n",
    "repeated": b"path,label\nvideos/across/0.mp4,a\nvideos/across/0.mp4,b\n",
    "wrong split": b"path,label,split\nvideos/across/0.mp4,a,training\n",
    "partly split": b"path,label,split\nvideos/across/0.mp4,a,train\nvideos/across/1.mp4,a,\n",
    "divided group": b"path,label,split,group\nvideos/across/0.mp4,a,train,g\nvideos/across/1.mp4,a,test,g\n",
    "latin-1": "path,label\nvideos/across/0.mp4,caf\u00e9\n".encode("latin-1"),
    "zero bytes": b"path,label\n\x00\x00\x00,a\n",
    "long field": b"path,label\n" + b"x" * 200_000 + b",a\n",
    "two labels": b"path,label,label\nvideos/across/0.mp4,a,b\n",
    "slash in a label column": b"path,label_../../x\nvideos/across/0.mp4,a\n",
    "binary": bytes(range(256)) * 20,
}
JSON_LINES = {
    "nested": b'{"path": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "no object": b"[1, 2]\n3\n",
    "no path": b'{"file": "x"}\n',
    "no JSON": b"path,label\n",
    "number": b'{"path": 3}\n',
}


def wrong_path(draw: random.Random) -> Invocation:
    """A path that does not hold what the option expects."""
    path = draw.choice(BAD_PATHS)
    lines = [
        ["pretrain", "--data", path],
        ["pretrain", "--config", "videos-cpu", "--data", path, "--run", "new"],
        ["evaluate", "--run", path, "--protocol", "linear"],
        [*EVALUATE, "--data", path],
        ["embed", "--run", path, "--out", "out.parquet"],
        [*EMBED, "--data", path],
        ["export", "--run", path],
        ["report", "--run", path],
        ["compare", "run", path],
        ["prepare", "--data", path, "--out", "out"],
        ["prepare", "--out", path, "--verify"],
        ["doctor", "--data", path],
    ]
    if path != "run/config.yaml":  # which is a config
        lines += [["pretrain", "--config", path], ["configs", "show", path]]
    return Invocation(draw.choice(lines))


def wrong_setting(draw: random.Random) -> Invocation:
    """A key or value that `--set` must not take."""
    lines = [
        ["pretrain", "--data", "videos"],
        ["pretrain"],
        EVALUATE,
        EMBED,
        ["prepare", "--data", "videos", "--out", "out"],
    ]
    return Invocation([*draw.choice(lines), "--set", draw.choice(BAD_SETTINGS)])


def wrong_choice(draw: random.Random) -> Invocation:
    """A value outside of a list, a wrong option, or options that contradict each other."""
    part = draw.choice(BAD_PARTS)
    lines = [
        *(["pretrain", "--data", "videos", *wrong] for wrong in BAD_OPTIONS),
        [*EVALUATE, "--part", part],
        [*EMBED, "--part", part],
        ["prepare", "--data", "videos", "--out", "out", "--part", part],
        ["evaluate", "--run", "run", "--protocol", draw.choice(["nope", "", "KNN", "linear-cvlr"])],
        ["evaluate", "--run", "run"],
        ["evaluate", "--run", "run", "--protocol", "finetune-vcop", "--part", "1/2"],
        ["evaluate", "--run", "run", "--protocol", "factors", "--data", "videos"],
        [*EVALUATE, "--checkpoint", "oldest"],
        [*EVALUATE, "--checkpoint", "best"],
        [*EVALUATE, "--splits", draw.choice(["some", "all", ""])],
        [*EVALUATE, "--set", draw.choice(["model.backbone=r3d18", "views.size=20", "contrast.task=coupled"])],
        [*EVALUATE, "--set", draw.choice(["data.holdout=0.9", "data.limit=3"])],
        [*EVALUATE, "--supervised", draw.choice(["nowhere.pth", "binary.csv", "videos"])],
        [*EVALUATE, "--out", "videos/across/0.mp4"],
        ["embed", "--run", "run", "--out", draw.choice(["out.csv", "s3://b/x.parquet", "out", "", "binary.csv"])],
        ["embed", "--run", "run", "--out", "videos/across/0.mp4/x.parquet"],
        ["export", "--run", "run", "--format", draw.choice(["nope", "", "tflite", "ONNX"])],
        ["export", "--run", "run", "--out", "videos"],
        ["export", "--run", "run", "--format", "onnx", "--out", "model.txt"],
        ["report", "--run", "run", "--out", draw.choice(["report.txt", "videos/across/0.mp4/r.html", "videos"])],
        ["compare"],
        ["compare", "run"],
        ["compare", "run", "run", "--out", "table.docx"],
        ["prepare", "--data", "videos", "--out", "videos"],
        ["prepare", "--data", "prepared", "--out", "out"],
        ["prepare", "--out", "out"],
        ["prepare", "--data", "videos", "--out", "s3://bucket/out"],
        ["prepare", "--data", "videos", "--out", "out", "--quality", "500"],
        ["prepare", "--data", "videos", "--out", "out", "--fps", "nan"],
        ["prepare", "--data", "videos", "--out", "videos/across/0.mp4/out"],
        ["pretrain", "--resume"],
        ["pretrain", "--run", "run", "--resume", "--data", "videos"],
        ["doctor", "--set", "train.epochs=3"],
        ["doctor", "--data", "videos", "--failures", "binary.csv"],
        ["nope"],
        ["configs", "nope"],
    ]
    return Invocation(draw.choice(lines))


def wrong_data(draw: random.Random) -> Invocation:
    """A set of videos that cannot be used."""
    lines = [
        ["pretrain", "--data", "data", "--run", "new"],
        [*EVALUATE, "--data", "data"],
        [*EMBED, "--data", "data"],
        ["prepare", "--data", "data", "--out", "out"],
    ]
    kinds: list[tuple[list[list[str]], Damage]] = [
        (lines, lambda folder, _: broken_videos(folder / "data", 6)),
        (lines, lambda folder, _: mixed(folder)),
        (lines[:2], lambda folder, _: shutil.copytree(folder / "videos" / "across", folder / "data" / "one class")),
        (lines, lambda folder, _: (folder / "data").mkdir()),
    ]
    for content in MANIFESTS.values():
        kinds.append((lines, lambda folder, _, content=content: manifest(folder, "manifest.csv", content)))
    for content in JSON_LINES.values():
        kinds.append((lines, lambda folder, _, content=content: manifest(folder, "manifest.jsonl", content)))
    commands, damage = draw.choice(kinds)
    return Invocation(draw.choice(commands), damage)


def wrong_run(draw: random.Random) -> Invocation:
    """A damaged run."""
    config, results, old = "run/config.yaml", "run/results/knn-x.json", "run/checkpoints/step-000000001.keras"
    all_commands = [EVALUATE, EMBED, ["export", "--run", "run"], ["pretrain", "--run", "run", "--resume"]]
    reading = [["report", "--run", "run"], ["compare", "run", "run"]]
    kinds = [
        *(
            (config, content, [*all_commands, reading[0]])
            for content in (b"\xff\xfe", b"a: [", b"- 1\n", b"nokey: 1\n")
        ),
        (config, b"data: {frames: many}\n", all_commands),
        *((old, content, all_commands) for content in (b"", b"PK\x03\x04", b"not a zip")),
        (old, None, all_commands[:-1]),  # --resume starts a run without a checkpoint from the beginning
        *((results, content, reading) for content in (b"", b"[]", b"{}", b"null", b"\xff", b'{"protocol": 1}')),
        (results, json.dumps({"protocol": "knn", "version": 1, "dataset": "x", "metrics": []}).encode(), reading),
        ("run/metrics.csv", b"epoch,loss\none,two\n", reading[:1]),
        ("run/environment.json", b"[", reading[:1]),
        ("run/videos.csv", b"\xff\xfe\x00", [EVALUATE]),
    ]
    file, content, commands = draw.choice(kinds)
    return Invocation(list(draw.choice(commands)), lambda folder, _: replace_file(folder / file, content))


def wrong_prepared_set(draw: random.Random) -> Invocation:
    """A damaged prepared set."""
    lines = [
        ["pretrain", "--config", "videos-cpu", "--data", "prepared", "--run", "new", "--set", "train.batch_size=2"],
        [*EVALUATE, "--data", "prepared"],
        [*EMBED, "--data", "prepared"],
        ["prepare", "--out", "prepared", "--verify"],
    ]

    def damage(folder: Path, draw: random.Random) -> None:
        file = draw.choice(sorted((folder / "prepared").glob(draw.choice(["*.json", "*.tfrecord", "*.tfrecord*"]))))
        content = file.read_bytes()
        replace_file(file, draw.choice([None, b"", b"{", content[: len(content) // 3]]))
        if file.name == "report.json":  # nobody reads it again
            replace_file(folder / "prepared" / "prepared.json", b"{")

    return Invocation(draw.choice(lines), damage)


def wrong_backend(draw: random.Random) -> Invocation:
    """A backend that does not exist."""
    name = draw.choice(["mxnet", "Tensorflow", "jaxx", "numpy"])
    return Invocation(draw.choice([EVALUATE, EMBED, ["pretrain", "--data", "videos"]]), None, {"KERAS_BACKEND": name})


KINDS = [wrong_path, wrong_setting, wrong_choice, wrong_data, wrong_run, wrong_prepared_set, wrong_backend]
WEIGHTS = [6, 5, 6, 6, 5, 2, 1]


def broken_videos(folder: Path, count: int) -> None:
    """Write files that are no videos, in two classes."""
    for number in range(count):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "ab"[number % 2] / f"{number}.mp4").write_text("not a video")


def mixed(folder: Path) -> None:
    """Put a video beside the class folders."""
    shutil.copytree(folder / "videos", folder / "data")
    shutil.copy(folder / "videos" / "across" / "0.mp4", folder / "data" / "loose.mp4")


def manifest(folder: Path, name: str, content: bytes) -> None:
    """Write a manifest into a folder with the videos."""
    shutil.copytree(folder / "videos", folder / "data" / "videos")
    (folder / "data" / name).write_bytes(content)


def replace_file(file: Path, content: bytes | None) -> None:
    """Write a file, or remove it."""
    file.parent.mkdir(exist_ok=True)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)


def make_valid_folder(folder: Path) -> None:
    """Eight videos, a run of a network with random weights, a prepared set, and what wrong paths lead to."""
    shapes = MovingShapes(frames=24, size=32)
    for label, motion in (("across", "right"), ("around", "circling")):
        (folder / "videos" / label).mkdir(parents=True)
        for number in range(4):
            write_video(folder / "videos" / label / f"{number}.mp4", render_video(shapes, "dots", motion, number))
    experiment = Experiment.model_validate(
        {
            "data": {"path": str(folder / "videos"), "frames": 4, "stride": 1, "decode_size": [20, 20], "holdout": 0.5},
            "views": {"size": 16},
            "model": {"backbone": "r3d_tiny"},
            "train": {"batch_size": 4, "epochs": 1},
        }
    )
    run = RunDirectory(folder / "run")
    run.create(experiment)
    run.checkpoints.save(build_model(experiment), 1, 1)
    prepare(read_records(folder / "videos"), folder / "prepared", size=(20, 20), videos_per_shard=4, processes=1)
    (folder / "empty").mkdir()
    (folder / "hidden").mkdir()
    (folder / "hidden" / "._0.mp4").write_bytes(b"x")
    (folder / "circle" / "inside").mkdir(parents=True)
    (folder / "circle" / "inside" / "back").symlink_to(folder / "circle")
    (folder / "binary.csv").write_bytes(bytes(range(256)))


def call(arguments: list[str], folder: Path, output: Path) -> None:
    """Run a command in this process, which was forked for it."""
    with output.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(folder)
    sys.argv = ["hdc-keras", *arguments]
    from hdc_keras_cli.main import main as command_line

    code = 0
    try:
        command_line()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else bool(ended.code)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(invocation: Invocation, valid: Path, folder: Path, seed: int) -> tuple[int | None, str, float]:
    """Run an invocation. Returns its exit code (`None` if it was stopped), what it printed, and seconds."""
    shutil.copytree(valid, folder, symlinks=True)
    if invocation.damage:
        invocation.damage(folder, random.Random(seed))
    output, began = folder.with_suffix(".txt"), time.monotonic()
    if invocation.environment or any("\x00" in word for word in invocation.arguments):
        words = [word.replace("\x00", "") for word in invocation.arguments]
        command = [Path(sys.executable).parent / "hdc-keras", *words]
        environment = os.environ | (invocation.environment or {})
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=MOST_SECONDS
        )
        return done.returncode, done.stdout + done.stderr, time.monotonic() - began
    process = multiprocessing.get_context("fork").Process(target=call, args=(invocation.arguments, folder, output))
    process.start()
    process.join(MOST_SECONDS)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return code, output.read_text(errors="replace") if output.exists() else "", time.monotonic() - began


def problems_of(code: int | None, printed: str, folder: Path) -> list[str]:
    """What is wrong with the answer to a wrong command."""
    lines = len(printed.splitlines())
    new = [
        path.name for path in folder.iterdir() if path.name in ("out.parquet", "model.txt", "table.docx", "report.txt")
    ]
    found = {
        "hangs": code is None,
        "accepted": code == 0,
        "killed by a signal": code is not None and code < 0,
        "traceback": "Traceback" in printed,
        f"{lines} lines": lines > MOST_LINES,
        "says nothing": not printed.strip(),
        f"left {new}": bool(new),
    }
    return [name for name, is_true in found.items() if is_true]


def main() -> None:
    """Draw, run and print a table by command and every problem; exit with 1 if there is any."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--count", type=int, default=300)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--show", action="store_true", help="print every command and the last line of its answer")
    asked = options.parse_args()
    draw = random.Random(asked.seed)
    drawn = [draw.choices(KINDS, WEIGHTS)[0](draw) for _ in range(asked.count)]
    table: dict[str, Counter[str]] = defaultdict(Counter)
    slowest: dict[str, float] = defaultdict(float)
    bad = 0
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as threads:
        base = Path(name)
        os.environ["HDC_KERAS_CACHE"] = str(base / "cache")
        maker = multiprocessing.get_context("fork").Process(target=make_valid_folder, args=(base / "valid",))
        maker.start()
        maker.join()
        assert maker.exitcode == 0
        jobs = [
            threads.submit(run, invocation, base / "valid", base / f"case-{number}", number)
            for number, invocation in enumerate(drawn)
        ]
        for number, (invocation, job) in enumerate(zip(drawn, jobs, strict=True)):
            code, printed, seconds = job.result()
            command = invocation.arguments[0]
            slowest[command] = max(slowest[command], seconds)
            found = problems_of(code, printed, base / f"case-{number}")
            table[command]["drawn"] += 1
            table[command]["refused"] += not found
            if asked.show or found:
                words = " ".join(map(repr, invocation.arguments))[:300]
                print(
                    f"{number}: {', '.join(found) or 'refused'} (code {code}): {words} {invocation.environment or ''}"
                )
                answer = printed.strip().splitlines() or ["(nothing)"]
                print(
                    "    " + "\n    ".join(line[:300] for line in (answer[-25:] if found else answer[-1:])), flush=True
                )
            bad += bool(found)
            shutil.rmtree(base / f"case-{number}", ignore_errors=True)
    for command, counts in sorted(table.items()):
        print(
            f"{command:10} {counts['drawn']:4} drawn {counts['refused']:4} refused, slowest {slowest[command]:4.1f} s"
        )
    print(f"seed {asked.seed}: {asked.count} wrong commands, {asked.count - bad} refused as they should be, {bad} not")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
