"""Search your own videos for what looks alike and for what moves alike, with the file that `hdc-keras embed` writes.

Command: python examples/search_your_videos.py videos.parquet [--query VIDEO_ID] [--task spatial|temporal|all]
         [--out sheet.png]
It prints the nearest videos of one video and draws their first and middle frames. It runs as a script and, cell by cell
(`# %%`), as a notebook.
"""

# %% What is searched for
import argparse
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageOps

from hdc_keras.data.decoding import count_frames, decode
from hdc_keras.errors import VideoDecodeError

ARGUMENTS = sys.argv[1:]  # in a notebook: ["videos.parquet", "--query", "a_video.mp4"]
HITS = 5
WIDTH, HEIGHT, LINE = 120, 90, 16  # of a frame and of a line of text in the picture, in pixels

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file", help="what `hdc-keras embed` wrote")
parser.add_argument("--query", help="video_id to search from; the first one if not given")
parser.add_argument("--task", default="all", help="spatial (looks), temporal (moves), or all, one after the other")
parser.add_argument("--out", type=Path, default=Path("sheet.png"), help="picture to draw")
arguments = parser.parse_args(ARGUMENTS)

# %% The videos, and the embeddings of each task at all its levels
table = pq.read_table(arguments.file)
matches = [match for name in table.column_names if (match := re.fullmatch(r"P\d_(\w+)", name))]
tasks = {match[1]: [m[0] for m in matches if m[1] == match[1]] for match in matches}
if arguments.task not in (*tasks, "all"):
    sys.exit(f"--task {arguments.task}: expected all or one of the file's tasks: {', '.join(tasks)}")
ids, paths = table["video_id"].to_pylist(), table["path"].to_pylist()
if arguments.query and arguments.query not in ids:
    sys.exit(f"--query {arguments.query}: no such video. The first ones: {', '.join(ids[:HITS])}")
query = ids.index(arguments.query) if arguments.query else 0


# %% The nearest by cosine
def nearest(columns: list[str]) -> list[tuple[int, float]]:
    """Row and cosine of the query itself and of the videos nearest to it."""
    vectors = np.concatenate([np.stack(table[name].to_numpy()) for name in columns], axis=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors[query]
    rows = np.argsort(-cosines)[: HITS + 1]
    return [(row, float(cosines[row])) for row in [query, *rows[rows != query]][: HITS + 1]]


found = {task: nearest(tasks[task]) for task in tasks if arguments.task in (task, "all")}
for task, hits in found.items():
    print(f"\n{task}: nearest to {ids[query]} by {', '.join(tasks[task])}")
    for row, cosine in hits:
        labels = [str(table[name][row]) for name in table.column_names if name.startswith("label")]
        print(f"  {cosine:.3f}  {ids[row]:40}  {'  '.join(labels)}")


# %% Their first and middle frames: a row a task, the query on the left
def draw(path: str) -> list[Image.Image]:
    """Two frames of a video; grey where it cannot be read any more."""
    try:
        return [Image.fromarray(frame) for frame in decode(path, np.array([0, count_frames(path) // 2]))]
    except VideoDecodeError:
        return [Image.new("RGB", (WIDTH, HEIGHT), "grey")] * 2


sheet = Image.new("RGB", (2 * WIDTH * (HITS + 1), (HEIGHT + LINE) * len(found)), "white")
for y, (task, hits) in enumerate(found.items()):
    for x, (row, cosine) in enumerate(hits):
        left, top = 2 * WIDTH * x, (HEIGHT + LINE) * y
        ImageDraw.Draw(sheet).text((left + 2, top + 2), f"{task} {cosine:.2f} {ids[row][-24:]}", "black")
        for number, frame in enumerate(draw(paths[row])):
            sheet.paste(ImageOps.pad(frame, (WIDTH, HEIGHT)), (left + number * WIDTH, top + LINE))
sheet.save(arguments.out)
print(f"\nTheir first and middle frames are in {arguments.out}")
