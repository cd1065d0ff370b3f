"""Which videos share batch statistics, when a batch is computed in several groups: replicas or micro-batches.

Batch norm lets all clips of a group depend on each other. If a positive is in the group of its anchor, and the
negatives of other groups are not, the statistics tell which candidate is the positive, and the contrast can be solved
without looking at the video. MoCo (He et al. 2020, arXiv 1911.05722, section 3.3) computes the positives of a group
in other groups. Here the positives of the whole batch change places at random before they are computed, and their
features return to their videos before the loss. Nothing is communicated inside the network, so XLA can compile it.
"""

from typing import Any

from keras import ops, tree

from hdc_keras.step.network import ContrastModel, Tensor, Videos
from hdc_keras.step.replicas import ReplicaGroup


def shuffles_statistics(model: ContrastModel, replicas: ReplicaGroup) -> bool:
    """Whether the step must shuffle: some groups of a contrast have statistics of their own."""
    options = model.step_options
    # The contrast of a plain micro-batch is among the videos of that micro-batch, on all replicas.
    pieces = options.micro_batches if options.accumulate == "cached" else 1
    # Keys are computed with averaged statistics, so they depend on no other video.
    return options.shuffle_statistics and replicas.count * pieces > 1 and model.keys_function is None


def with_shuffled_positives(
    model: ContrastModel, replicas: ReplicaGroup, videos: Videos, draws: Any
) -> tuple[Videos, Tensor]:
    """Give the positives other places.

    Args:
        model: the model.
        replicas: the replicas that share the batch.
        videos: the videos of this replica.
        draws: the draws of the whole batch.

    Returns:
        The videos of this replica with those that its positives show, and the order: the video of the contrast that
        the positives show at each of its places. A contrast is the whole batch, (batch,), or each plain micro-batch,
        (pieces, batch / pieces).
    """
    options = model.step_options
    batch = ops.shape(videos.windows)[0] * replicas.count
    # Places are dealt out to micro-batches in turn (`gradients._split`), so the places of a plain one form a column.
    columns = options.micro_batches if options.accumulate == "plain" else 1
    # On JAX, a video stays on its device: statistics are those of all devices, so only micro-batches are groups.
    blocks = replicas.shards
    numbers = model.view_generator.draw_numbers(batch)
    within = ops.argsort(ops.reshape(numbers, (blocks, batch // (blocks * columns), columns)), axis=1)
    within = ops.cast(within, "int32") + ops.arange(blocks, dtype="int32")[:, None, None] * (
        batch // (blocks * columns)
    )
    order = ops.reshape(within, (batch // columns, columns))  # places within the contrast
    places = ops.reshape(order * columns + ops.arange(columns, dtype="int32"), (batch,))  # places within the batch
    own_places = replicas.local_part(places)
    windows = _taken(replicas.gather(videos.windows, axis=0), own_places, blocks)
    draws = tree.map_structure(lambda x: ops.take(x, own_places, axis=0), draws)
    order = ops.transpose(order) if columns > 1 else ops.reshape(order, (batch,))
    return videos._replace(of_positives=(windows, draws)), order


def _taken(windows: Tensor, places: Tensor, blocks: int) -> Tensor:
    """`windows[places]`, where the places of each block, which a device of JAX holds, lie within the block."""
    if blocks == 1:
        return ops.take(windows, places, axis=0)
    size = windows.shape[0] // blocks
    parts = ops.reshape(windows, (blocks, size, *windows.shape[1:]))
    within = ops.reshape(places, (blocks, size)) % size
    # A batched gather, which the partitioner of XLA keeps on each device.
    taken = ops.vectorized_map(lambda both: ops.take(both[0], both[1], axis=0), (parts, within))
    return ops.reshape(taken, windows.shape)
