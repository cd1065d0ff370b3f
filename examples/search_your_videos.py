"""Find the videos that look or move like a given one, in a file written by `hdc-keras embed`.

Command: python examples/search_your_videos.py videos.parquet [--query VIDEO_ID] [--task spatial|temporal|all]
         [--out sheet.png]
It prints the nearest neighbours of the query and draws the first and middle frame of each. It runs as a script or,
cell by cell (`# %%`), as a notebook.
"""

# %% Arguments
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
NEIGHBOURS = 5
WIDTH, HEIGHT, LINE = 120, 90, 16  # size of a frame and height of a line of text in the picture, in pixels

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file", help="Parquet file written by `hdc-keras embed`")
parser.add_argument("--query", help="video_id to search for; default: the first video in the file")
parser.add_argument("--task", default="all", help="spatial (appearance), temporal (motion), or all; default: all")
parser.add_argument("--out", type=Path, default=Path("sheet.png"), help="picture to write; default: sheet.png")
arguments = parser.parse_args(ARGUMENTS)

# %% Read the videos and find the embedding columns of each task
table = pq.read_table(arguments.file)
matches = [match for name in table.column_names if (match := re.fullmatch(r"P\d_(\w+)", name))]
columns_of_task = {match[1]: [other[0] for other in matches if other[1] == match[1]] for match in matches}
if arguments.task not in (*columns_of_task, "all"):
    sys.exit(f"--task {arguments.task}: expected all or a task of this file: {', '.join(columns_of_task)}")
ids, paths = table["video_id"].to_pylist(), table["path"].to_pylist()
if arguments.query and arguments.query not in ids:
    sys.exit(f"--query {arguments.query}: no such video. The first ones are {', '.join(ids[:NEIGHBOURS])}")
query = ids.index(arguments.query) if arguments.query else 0


# %% Find the nearest neighbours by cosine similarity
def nearest(columns: list[str]) -> list[tuple[int, float]]:
    """Row and cosine similarity of the query, followed by those of its nearest neighbours."""
    vectors = np.concatenate([np.stack(table[name].to_numpy()) for name in columns], axis=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors[query]
    rows = np.argsort(-cosines)[: NEIGHBOURS + 1]
    return [(row, float(cosines[row])) for row in [query, *rows[rows != query]][: NEIGHBOURS + 1]]


found = {task: nearest(columns) for task, columns in columns_of_task.items() if arguments.task in (task, "all")}
for task, rows in found.items():
    print(f"\n{task}: nearest to {ids[query]} by {', '.join(columns_of_task[task])}")
    for row, cosine in rows:
        labels = [str(table[name][row]) for name in table.column_names if name.startswith("label")]
        print(f"  {cosine:.3f}  {ids[row]:40}  {'  '.join(labels)}")


# %% Draw the first and middle frames: a row for each task, starting with the query
def frames_of(path: str) -> list[Image.Image]:
    """The first and the middle frame of a video, or two grey ones if it can no longer be read."""
    try:
        return [Image.fromarray(frame) for frame in decode(path, np.array([0, count_frames(path) // 2]))]
    except VideoDecodeError:
        return [Image.new("RGB", (WIDTH, HEIGHT), "grey")] * 2


sheet = Image.new("RGB", (2 * WIDTH * (NEIGHBOURS + 1), (HEIGHT + LINE) * len(found)), "white")
for y, (task, rows) in enumerate(found.items()):
    for x, (row, cosine) in enumerate(rows):
        left, top = 2 * WIDTH * x, (HEIGHT + LINE) * y
        ImageDraw.Draw(sheet).text((left + 2, top + 2), f"{task} {cosine:.2f} {ids[row][-24:]}", "black")
        for number, frame in enumerate(frames_of(paths[row])):
            sheet.paste(ImageOps.pad(frame, (WIDTH, HEIGHT)), (left + number * WIDTH, top + LINE))
sheet.save(arguments.out)
print(f"\nTheir first and middle frames are in {arguments.out}")
