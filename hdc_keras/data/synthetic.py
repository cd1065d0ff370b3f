"""Moving shapes: a small labelled video set with two independent factors, rendered and encoded on first use.

*Appearance* is the background scene, *motion* is how a sprite moves in front of it. Everything else (colours, tint,
phase and scale of the pattern; shape, size, position and speed of the sprite) is a nuisance factor that is drawn for
each video. Every pair of an appearance and a motion is equally frequent in every split, so neither factor predicts the
other.
"""

import csv
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from hdc_keras.data.sampling import random_generator
from hdc_keras.errors import RunError
from hdc_keras.files import replacing

APPEARANCES = ("stripes", "diagonal", "checks", "dots", "rings", "clouds")
MOTIONS = ("right", "left", "up", "down", "circling", "pulsing")
SHAPES = ("disc", "square", "diamond")

# Increase this whenever the same specification renders different pixels; otherwise caches return old videos.
_RENDERER_VERSION = 2


@dataclass(frozen=True)
class MovingShapes:
    """How the set is rendered.

    Args:
        train_per_pair: training videos for each of the 36 (appearance, motion) pairs.
        test_per_pair: test videos for each pair.
        frames: frames per video, at 25 frames per second.
        size: height and width in pixels; must be even.
        seed: seed of all random choices.
    """

    train_per_pair: int = 16
    test_per_pair: int = 6
    frames: int = 40
    size: int = 64
    seed: int = 0

    @property
    def videos_per_pair(self) -> int:
        """Total number of videos for each pair."""
        return self.train_per_pair + self.test_per_pair


def cache_folder() -> Path:
    """Folder for rendered sets: `$HDC_KERAS_CACHE`, or `hdc-keras` in the user's cache folder."""
    fallback = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hdc-keras"
    return Path(os.environ.get("HDC_KERAS_CACHE") or fallback)


def ensure_moving_shapes(spec: MovingShapes, progress: Callable[[int, int], None] | None = None) -> Path:
    """Render the set unless it is cached.

    The set gets its final name only when it is complete. If two processes render it at the same time, the first one to
    finish provides the set, and both return the same files.

    Args:
        spec: how to render the set.
        progress: called with (videos rendered, total videos) after each video.

    Returns:
        Path of `manifest.csv`, with columns `path, label_appearance, label_motion, split`.

    Raises:
        RunError: the set cannot be written.
    """
    name = "-".join(str(value) for value in asdict(spec).values())
    folder = cache_folder() / f"moving-shapes-v{_RENDERER_VERSION}-{name}"
    manifest = folder / "manifest.csv"
    if manifest.exists():
        return manifest
    try:
        with replacing(folder) as temporary:
            temporary.mkdir()
            _render_all(spec, temporary, progress)
    except OSError as error:
        # A folder cannot be replaced, so this also happens when another process has finished first.
        if not manifest.exists():
            raise RunError(
                f"{cache_folder()} cannot be written ({error.strerror or error}). Free some disk space, or set "
                "HDC_KERAS_CACHE to another folder for the rendered videos."
            ) from error
    return manifest


def render_video(spec: MovingShapes, appearance: str, motion: str, number: int) -> np.ndarray:
    """Render one video: (frames, size, size, 3) uint8, which depends only on the arguments."""
    generator = random_generator("moving-shapes", spec.seed, appearance, motion, number)
    background = _draw_background(generator, appearance, spec.size)
    frames = _draw_sprite(generator, motion, spec, background)
    tint = generator.uniform(0.75, 1.0, 3).astype(np.float32)
    return (255 * np.clip(frames * tint, 0, 1) + 0.5).astype(np.uint8)


def write_video(path: Path, frames: np.ndarray, rate: int = 25) -> None:
    """Encode (time, height, width, 3) uint8 frames as H.264; height and width must be even."""
    with av.open(str(path), "w") as container:
        # With several threads, the encoder's output would depend on their number. Its AVX-512 code gives other output
        # from run to run, so it uses plain C, which is fast enough for videos of this size.
        options = {"crf": "18", "preset": "veryfast", "threads": "1", "x264-params": "asm=0"}
        stream = container.add_stream("libx264", rate=Fraction(rate), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _render_all(spec: MovingShapes, folder: Path, progress: Callable[[int, int], None] | None) -> None:
    numbers = {"train": range(spec.train_per_pair), "test": range(spec.train_per_pair, spec.videos_per_pair)}
    jobs = [
        (split, appearance, motion, number)
        for split in numbers
        for appearance in APPEARANCES
        for motion in MOTIONS
        for number in numbers[split]
    ]

    def render(job: tuple[str, str, str, int]) -> tuple[str, str, str, str]:
        split, appearance, motion, number = job
        name = f"{appearance}-{motion}-{number:03d}.mp4"
        write_video(folder / name, render_video(spec, appearance, motion, number))
        return name, appearance, motion, split

    rows = []
    # Threads run in parallel here, because numpy and the encoder release the GIL.
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        for row in executor.map(render, jobs):
            rows.append(row)
            if progress:
                progress(len(rows), len(jobs))
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label_appearance", "label_motion", "split"))
        writer.writerows(rows)


def _draw_background(generator: np.random.Generator, appearance: str, size: int) -> np.ndarray:
    """(size, size, 3) float32 in [0, 1]: two colours, mixed according to the pattern of the scene."""
    rows, columns = np.mgrid[0:size, 0:size].astype(float)
    period = generator.uniform(10, 18)
    shift_x, shift_y = generator.uniform(0, period, 2)
    x, y = 2 * np.pi * (columns + shift_x) / period, 2 * np.pi * (rows + shift_y) / period
    if appearance == "stripes":
        pattern = np.sin(x)
    elif appearance == "diagonal":
        pattern = np.sin(x + y)
    elif appearance == "checks":
        pattern = 4 * np.sin(x) * np.sin(y)
    elif appearance == "dots":
        pattern = 3 * (np.cos(x) + np.cos(y)) - 3
    elif appearance == "rings":
        centre_x, centre_y = generator.uniform(0.2, 0.8, 2) * size
        pattern = np.sin(2 * np.pi * np.hypot(columns - centre_x, rows - centre_y) / period + shift_x)
    else:
        pattern = _clouds(generator, size)
    mix = 0.5 + 0.5 * np.tanh(2 * pattern)[..., None]
    first, second = generator.uniform(0.1, 0.45, 3), generator.uniform(0.35, 0.7, 3)
    return (first * mix + second * (1 - mix)).astype(np.float32)


def _clouds(generator: np.random.Generator, size: int) -> np.ndarray:
    frequencies = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    spectrum = np.exp(2j * np.pi * generator.random((size, size))) * np.exp(-((frequencies / 0.06) ** 2))
    field = np.fft.ifft2(spectrum).real
    return 1.5 * field / field.std()


def _draw_sprite(generator: np.random.Generator, motion: str, spec: MovingShapes, background: np.ndarray) -> np.ndarray:
    """(frames, size, size, 3) float32: the sprite over the background. It wraps around at the edges."""
    size = spec.size
    time = np.arange(spec.frames)
    centre = generator.uniform(0, size, 2)
    radius = np.full(spec.frames, generator.uniform(0.12, 0.18) * size)
    speed = generator.uniform(0.02, 0.04) * size
    angle = generator.uniform(0, 2 * np.pi) + generator.choice((-1, 1)) * 2 * np.pi * time / generator.uniform(18, 28)
    x, y = np.full(spec.frames, centre[0]), np.full(spec.frames, centre[1])
    if motion in ("right", "left"):
        x = x + (1 if motion == "right" else -1) * speed * time
    elif motion in ("down", "up"):
        y = y + (1 if motion == "down" else -1) * speed * time
    elif motion == "circling":
        orbit = generator.uniform(0.15, 0.22) * size
        x, y = x + orbit * np.cos(angle), y + orbit * np.sin(angle)
    else:
        radius = radius * (1 + 0.5 * np.sin(angle))
    grid = np.arange(size)
    # Distances with wrap-around, in [-size/2, size/2).
    dx = ((grid[None] - x[:, None] + size / 2) % size - size / 2).astype(np.float32)
    dy = ((grid[None] - y[:, None] + size / 2) % size - size / 2).astype(np.float32)
    radius = radius.astype(np.float32)
    distance = _shape_distance(str(generator.choice(SHAPES)), dx[:, None, :], dy[:, :, None])
    cover = np.clip(radius[:, None, None] - distance + 0.5, 0, 1)[..., None]
    core = np.clip(0.5 * radius[:, None, None] - distance + 0.5, 0, 1)[..., None]
    bright, dark = (generator.uniform(*limits, 3).astype(np.float32) for limits in ((0.75, 1.0), (0.0, 0.25)))
    return background + cover * (bright - background) + core * (dark - bright)


def _shape_distance(shape: str, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    if shape == "disc":
        return np.hypot(dx, dy)
    if shape == "square":
        return np.maximum(abs(dx), abs(dy)) / 0.89
    return (abs(dx) + abs(dy)) / 1.25
