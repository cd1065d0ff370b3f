"""The views of a batch of videos: anchor, positives and temporal negatives (METHOD, "Views")."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from hdc_keras.config import Task, ViewsConfig
from hdc_keras.views import transforms

Tensor = Any
Draws = dict[str, transforms.Parameters]

# How each view is made: which window it shows, and under which draw of spatial augmentation: the anchor's, another, or
# the spatial positive's, which is the anchor's but for colours of its own where `own_colour` says so.
_ANCHOR_WINDOW, _SECOND_WINDOW = 0, 1
_VIEWS = {
    "anchor": (_ANCHOR_WINDOW, "anchor"),
    "spatial_positive": (_SECOND_WINDOW, "spatial"),
    "temporal_positive": (_ANCHOR_WINDOW, "other"),
    "coupled_positive": (_SECOND_WINDOW, "other"),
    "shifted": (_SECOND_WINDOW, "anchor"),
    "reversed": (_ANCHOR_WINDOW, "anchor"),
    "shuffled": (_ANCHOR_WINDOW, "anchor"),
    "frozen": (_ANCHOR_WINDOW, "anchor"),
}
_POSITIVES: dict[Task, dict[str, str]] = {
    "decoupled": {"spatial": "spatial_positive", "temporal": "temporal_positive"},
    "coupled": {"coupled": "coupled_positive"},
    "spatial": {"spatial": "spatial_positive"},
    "temporal": {"temporal": "temporal_positive"},
}


def positives_of(task: Task) -> dict[str, str]:
    """Which view is the positive of each task, as in {"spatial": "spatial_positive", ...}."""
    return _POSITIVES[task]


class ViewGenerator(keras.layers.Layer):
    """Turns windows into views.

    With windows `v[t_a]`, `v[t_s]` and two draws of spatial augmentation `s`, `s'` (with `own_colour`, the colours of
    the spatial positive's `s` are drawn anew):

    | view | definition |
    |---|---|
    | anchor | `s(v[t_a])` |
    | spatial_positive | `s(v[t_s])` |
    | temporal_positive | `s'(v[t_a])` |
    | coupled_positive | `s'(v[t_s])` |
    | temporal negatives | `s` of: `v[t_s]` (shifted), `v[t_a]` reversed, shuffled, frozen at one frame |

    Args:
        config: sizes, ranges and probabilities.
        task: decides which positives are made.
        seed: integer seed of the draws.
    """

    def __init__(self, config: ViewsConfig, task: Task = "decoupled", seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.config = config
        self.task = task
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True  # or Keras would make the views of a whole batch once more, to build what has no weights
        negatives = config.temporal_negatives if "temporal" in positives_of(task) else ()
        positives = positives_of(task).values()
        # The spatial positive is the shifted negative: made once, used twice.
        alike = "spatial_positive" in positives and not config.own_colour
        shared = {"shifted": "spatial_positive"} if alike else {}
        self.view_names: tuple[str, ...] = tuple(
            dict.fromkeys(["anchor", *positives, *(shared.get(name, name) for name in negatives)])
        )
        self.negative_views: tuple[str, ...] = tuple(shared.get(name, name) for name in negatives)

    def call(self, windows: Tensor) -> Tensor:
        """Draw, and make the views.

        Args:
            windows: (batch, 2, time, height, width, 3) uint8, or float in [0, 255].

        Returns:
            As `apply`.
        """
        return self.apply(windows, self.draw(ops.shape(windows)[0], windows.shape[2:5]))

    def draw(self, batch: Any, frames: tuple[int, int, int]) -> Draws:
        """Everything random about the views of a batch.

        Videos of a batch can be taken apart by their draws' first axis: a device or a micro-batch makes the views of
        its own videos, and they are those that a single device would have made.

        Args:
            batch: number of videos.
            frames: (time, height, width) of the windows.

        Returns:
            Tensors by kind and name, each (batch, ...).
        """
        time, frame_size = frames[0], frames[1:]
        draws = {}
        for owner in ("anchor", "other"):
            draws[f"{owner}_fading"] = transforms.draw_fading(batch, self.config, self.seed_generator)
            draws[f"{owner}_geometry"] = transforms.draw_geometry(batch, frame_size, self.config, self.seed_generator)
            draws[f"{owner}_colour"] = transforms.draw_colour(batch, self.config, self.seed_generator)
        draws["spatial_colour"] = self._spatial_colour(batch, draws["anchor_colour"])
        if "shuffled" in self.view_names:
            keys = keras.random.uniform((batch, time), seed=self.seed_generator)
            draws["shuffled_time"] = {"order": ops.argsort(keys, axis=1)}
        if "frozen" in self.view_names:
            draws["frozen_time"] = {"frame": keras.random.randint((batch,), 0, time, seed=self.seed_generator)}
        return draws

    def apply(self, windows: Tensor, draws: Draws) -> Tensor:
        """Make the views that were drawn.

        Args:
            windows: (batch, 2, time, height, width, 3) uint8, or float in [0, 255].
            draws: as `draw` gives them for these videos.

        Returns:
            (views * batch, time, size, size, 3) in the layer's compute dtype, in [0, 1]; views follow each other in the
            order of `view_names`.
        """
        owners = [_VIEWS[name][1] for name in self.view_names]
        # The spatial positive has the anchor's draws but for colour.
        fading, geometry = (
            _joined([draws[f"{'anchor' if owner == 'spatial' else owner}_{kind}"] for owner in owners])
            for kind in ("fading", "geometry")
        )
        colour = _joined([draws[f"{owner}_colour"] for owner in owners])
        clips = ops.concatenate([self._in_time(name, windows, draws) for name in self.view_names])
        clips = transforms.apply_geometry(ops.cast(clips, self.compute_dtype) / 255.0, geometry, self.config.size)
        if self.config.fade_static:
            clips = transforms.apply_fading(clips, fading)
        return transforms.apply_colour(clips, colour)

    def _spatial_colour(self, batch: Any, of_anchor: transforms.Parameters) -> transforms.Parameters:
        if not self.config.own_colour:
            return of_anchor
        own = keras.random.uniform((batch,), seed=self.seed_generator) < self.config.own_colour
        drawn = transforms.draw_colour(batch, self.config, self.seed_generator)
        return {name: ops.where(own, drawn[name], of_anchor[name]) for name in drawn}

    def _in_time(self, name: str, windows: Tensor, draws: Draws) -> Tensor:
        clips = windows[:, _VIEWS[name][0]]
        if name == "reversed":
            return ops.flip(clips, axis=1)
        if name == "shuffled":
            return _frames_at(clips, draws["shuffled_time"]["order"])
        if name == "frozen":
            frame = _frames_at(clips, draws["frozen_time"]["frame"][:, None])
            return ops.repeat(frame, clips.shape[1], axis=1)
        return clips

    def save_own_variables(self, store: Any) -> None:
        """Keep the state of the draws, which Keras leaves out, so that a resumed run draws what it would have drawn."""
        store["seed_state"] = ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        """Restore the state of the draws."""
        self.seed_generator.state.assign(store["seed_state"][()])

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """(views * batch, time, size, size, 3)."""
        batch, _, time = input_shape[:3]
        views = None if batch is None else batch * len(self.view_names)
        return (views, time, self.config.size, self.config.size, 3)


def _frames_at(clips: Tensor, frames: Tensor) -> Tensor:
    """(batch, time, ...) clips at (batch, n) frames: (batch, n, ...)."""
    return ops.take_along_axis(clips, frames[:, :, None, None, None], axis=1)


def _joined(draws: Sequence[transforms.Parameters]) -> transforms.Parameters:
    return {name: ops.concatenate([draw[name] for draw in draws]) for name in draws[0]}
