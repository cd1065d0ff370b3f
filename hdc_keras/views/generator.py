"""The views of a batch of videos: anchor, positives and temporal negatives (docs/method.md, "Views")."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
from keras import ops, tree

from hdc_keras.config import Task, ViewsConfig
from hdc_keras.devices import move_to_device
from hdc_keras.views import transforms
from hdc_keras.views.framing import framing, within

Tensor = Any
Draws = dict[str, transforms.Parameters]

# For each view, the window that it shows and the draw of spatial augmentation that it gets: "anchor", the independent
# draw "other", or "spatial", which is the anchor's draw with separate colours (see `views.own_colour`).
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
    """The positive view of each loss of a task, as in {"spatial": "spatial_positive", "temporal": ...}."""
    return _POSITIVES[task]


class ViewGenerator(keras.layers.Layer):
    """Turns windows into views.

    `v[t_a]` and `v[t_s]` are the two windows of a video, `s` and `s'` two draws of spatial augmentation. With
    `own_colour`, the spatial positive gets a separate colour draw within `s`.

    | view | definition |
    |---|---|
    | anchor | `s(v[t_a])` |
    | spatial_positive | `s(v[t_s])` |
    | temporal_positive | `s'(v[t_a])` |
    | coupled_positive | `s'(v[t_s])` |
    | temporal negatives | `s` of: `v[t_s]` (shifted), `v[t_a]` reversed, shuffled, frozen at one frame |

    Args:
        config: sizes, ranges and probabilities.
        task: determines which positives are made.
        seed: integer seed of the draws; random when `None`.
        **kwargs: `name`, `dtype`.

    Attributes:
        view_names: names of the views, in the order in which they are made.
        negative_views: name of the view used for each of `config.temporal_negatives`, in the same order.
        positives: name of the positive view of each loss.
    """

    def __init__(self, config: ViewsConfig, task: Task = "decoupled", seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.config = config
        self.task = task
        with _device_of_draws():
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True  # otherwise Keras would run the layer once to build it, although it has no weights
        negatives = config.temporal_negatives if "temporal" in positives_of(task) else ()
        self.positives = positives_of(task)
        positives = self.positives.values()
        # If nothing sets them apart, the shifted negative and the spatial positive are the same view, made once.
        is_shared = "spatial_positive" in positives and not (config.own_colour or config.still)
        shared = {"shifted": "spatial_positive"} if is_shared else {}
        self.view_names: tuple[str, ...] = tuple(
            dict.fromkeys(["anchor", *positives, *(shared.get(name, name) for name in negatives)])
        )
        self.negative_views: tuple[str, ...] = tuple(shared.get(name, name) for name in negatives)

    def call(self, windows: Tensor) -> Tensor:
        """Draw the augmentation and make the views.

        Args:
            windows: (batch, 2, time, height, width, 3) uint8, or float in [0, 255].

        Returns:
            (views * batch, time, size, size, 3) in the layer's compute dtype, in [0, 1]: the first view of all videos,
            then the second, in the order of `view_names`.
        """
        views = self.apply(windows, self.draw(ops.shape(windows)[0], windows.shape[2:5]))
        return ops.reshape(ops.moveaxis(views, 1, 0), (-1, *views.shape[2:]))

    def draw(self, batch: Any, frames: tuple[int, int, int]) -> Draws:
        """Draw everything that is random about the views of a batch.

        The draws can be split along their first axis, so that a replica or a micro-batch makes the same views of its
        videos as a single device would.

        Args:
            batch: number of videos.
            frames: (time, height, width) of the windows.

        Returns:
            Parameters by kind and name; tensors of shape (batch, ...).
        """
        with _device_of_draws():
            draws = self._draw(batch, frames)
        return tree.map_structure(move_to_device, draws)

    def draw_numbers(self, batch: Any) -> Tensor:
        """Draw a number in [0, 1) for each video of a batch: (batch,) float32."""
        with _device_of_draws():
            numbers = keras.random.uniform((batch,), seed=self.seed_generator)
        return move_to_device(numbers)

    def _draw(self, batch: Any, frames: tuple[int, int, int]) -> Draws:
        time, frame_size = frames[0], frames[1:]
        draws = {}
        for draw in ("anchor", "other"):
            draws[f"{draw}_fading"] = transforms.draw_fading(batch, self.config, self.seed_generator)
            draws[f"{draw}_geometry"] = transforms.draw_geometry(batch, frame_size, self.config, self.seed_generator)
            draws[f"{draw}_colour"] = transforms.draw_colour(batch, self.config, self.seed_generator)
        draws["spatial_colour"] = self._spatial_colour(batch, draws["anchor_colour"])
        if self.config.still:
            is_still = keras.random.uniform((batch,), seed=self.seed_generator) < self.config.still
            frame = keras.random.randint((batch,), 0, time, seed=self.seed_generator)
            order = ops.broadcast_to(ops.arange(time, dtype="int32")[None], (batch, time))
            draws["spatial_time"] = {"order": ops.where(is_still[:, None], ops.cast(frame, "int32")[:, None], order)}
        if "shuffled" in self.view_names:
            keys = keras.random.uniform((batch, time), seed=self.seed_generator)
            draws["shuffled_time"] = {"order": ops.argsort(keys, axis=1)}
        if "frozen" in self.view_names:
            draws["frozen_time"] = {"frame": keras.random.randint((batch,), 0, time, seed=self.seed_generator)}
        return draws

    def apply(
        self,
        windows: Tensor,
        draws: Draws,
        of_positives: tuple[Tensor, Draws] | None = None,
        names: Sequence[str] | None = None,
    ) -> Tensor:
        """Make the views from their draws.

        Args:
            windows: (batch, 2, time, height, width, 3) uint8, or float in [0, 255].
            draws: what `draw` returned for these videos.
            of_positives: windows and draws of the videos that the positives show, if these are other videos.
            names: the views to make; all when `None`.

        Returns:
            (batch, views, time, size, size, 3) in the layer's compute dtype, in [0, 1]. Videos are outermost, so that
            a batch that is split over devices stays split in the same way. Views are in the order of `names`.

        Raises:
            ValueError: `windows` has another shape.
        """
        _require_windows(windows)
        names, positives = names or self.view_names, self.positives.values()
        sources = [of_positives if of_positives and name in positives else (windows, draws) for name in names]
        clips = _by_video(
            [
                self._in_time(name, shown[:, _VIEWS[name][0]], own)
                for name, (shown, own) in zip(names, sources, strict=True)
            ]
        )
        parameters = [self._draws_of_view(name, own) for name, (_, own) in zip(names, sources, strict=True)]
        fading, geometry, colour = tree.map_structure(lambda *values: _by_video(values), *parameters)
        if self.config.focus or self.config.steady:
            outer = self._framings(names, sources)
            geometry = geometry | {"box": within(outer, geometry["box"])}
        clips = transforms.apply_geometry(ops.cast(clips, self.compute_dtype) / 255.0, geometry, self.config.size)
        if self.config.fade_static:
            clips = transforms.apply_fading(clips, fading)
        clips = transforms.apply_colour(clips, colour)
        return ops.reshape(clips, (-1, len(names), *clips.shape[1:]))

    def _framings(self, names: Sequence[str], sources: Sequence[tuple[Tensor, Draws]]) -> Tensor:
        """What part of its frames each view shows crops of: (batch * views, time or 1, 4)."""
        found: dict[tuple[int, int], Tensor] = {}
        of_views = []
        for name, (windows, draws) in zip(names, sources, strict=True):
            key = (id(windows), _VIEWS[name][0])
            if key not in found:
                found[key] = framing(windows[:, key[1]], self.config.focus, self.config.steady)
            of_views.append(self._in_time(name, found[key], draws) if self.config.steady else found[key])
        return _by_video(of_views)

    @staticmethod
    def _draws_of_view(name: str, draws: Draws) -> tuple[transforms.Parameters, ...]:
        """Fading, geometry and colour of view `name`."""
        draw = _VIEWS[name][1]
        # The spatial positive shares all of the anchor's draws except colour.
        owner = "anchor" if draw == "spatial" else draw
        return draws[f"{owner}_fading"], draws[f"{owner}_geometry"], draws[f"{draw}_colour"]

    def _spatial_colour(self, batch: Any, anchor_colour: transforms.Parameters) -> transforms.Parameters:
        if not self.config.own_colour:
            return anchor_colour
        is_separate = keras.random.uniform((batch,), seed=self.seed_generator) < self.config.own_colour
        separate = transforms.draw_colour(batch, self.config, self.seed_generator)
        return {name: ops.where(is_separate, separate[name], anchor_colour[name]) for name in separate}

    def _in_time(self, name: str, clips: Tensor, draws: Draws) -> Tensor:
        """Frames, or what belongs to them, in the order in which view `name` shows them: (batch, time, ...)."""
        if name == "reversed":
            return ops.flip(clips, axis=1)
        if name == "spatial_positive" and self.config.still:
            return _frames_at(clips, draws["spatial_time"]["order"])
        if name == "shuffled":
            return _frames_at(clips, draws["shuffled_time"]["order"])
        if name == "frozen":
            frame = _frames_at(clips, draws["frozen_time"]["frame"][:, None])
            return ops.repeat(frame, clips.shape[1], axis=1)
        return clips

    def save_own_variables(self, store: Any) -> None:
        """Save the random state, which Keras does not save, so that a resumed run makes the same draws."""
        store["seed_state"] = ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        """Restore the random state."""
        self.seed_generator.state.assign(store["seed_state"][()])

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """(views * batch, time, size, size, 3)."""
        batch, _, time = input_shape[:3]
        views = None if batch is None else batch * len(self.view_names)
        return (views, time, self.config.size, self.config.size, 3)


def _device_of_draws() -> AbstractContextManager[Any]:
    """Where random numbers are drawn. On PyTorch, Keras reads the seed on the host for each draw, which would wait for
    everything that a GPU has still to compute; so the seed and the draws, which are small, are on the CPU."""
    return keras.device("cpu") if keras.backend.backend() == "torch" else nullcontext()


def _require_windows(windows: Tensor) -> None:
    """Raise `ValueError` if a batch does not have the shape of windows, (batch, 2, time, height, width, 3)."""
    shape = tuple(windows.shape)
    if len(shape) != 6 or shape[1] not in (2, None) or shape[-1] not in (3, None):
        raise ValueError(
            "expected windows of shape (batch, 2, time, height, width, 3): two windows of each video, channels last. "
            f"Received: {shape}"
        )


def _frames_at(clips: Tensor, frames: Tensor) -> Tensor:
    """Select (batch, n) `frames` of (batch, time, ...) clips: (batch, n, ...)."""
    return ops.take_along_axis(clips, ops.expand_dims(frames, tuple(range(2, len(clips.shape)))), axis=1)


def _by_video(of_views: Sequence[Tensor]) -> Tensor:
    """Tensors (batch, ...) of each view -> (batch * views, ...): all views of the first video, then of the second."""
    stacked = ops.stack(of_views, axis=1)
    return ops.reshape(stacked, (-1, *stacked.shape[2:]))
