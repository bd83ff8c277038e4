"""Which parameters are sent together, when, and in how many bytes: the closed form of an algorithm's traffic.

Needs no torch: the same plan predicts a run's bytes before it starts and lays out its buffers when it runs.
A fragment is what is synchronised at one time; a bucket is what is sent in one message. Every parameter starts at a
multiple of the codec's block, so that a part held by several ranks of a replica is compressed alike on all of them.

Fragments: Streaming DiLoCo, arXiv 2501.18512, section 3.1. Strided: of P fragments, fragment p has the layers
p, p + P, p + 2P, ...; sequential: fragment p has the layers p n to p n + n - 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...results.table.outer_cost import Round
from .config import Outer, in_use

NORM_BYTES = 8  # behind a piece of a sum: |S|^2 and sum |Delta_m|^2, fp32


@dataclass(frozen=True)
class BucketPlan:
    """Where each parameter of one message lies in the flat buffer; counts are in elements."""

    indices: tuple[int, ...]  # into the engine's local_parameters()
    offsets: tuple[int, ...]
    numel: int  # padding included


def fragment_count(outer: Outer, layers: int) -> int:
    return -(-layers // in_use(outer.fragment_layers)) if outer.algorithm == "streaming" else 1


def fragment_of(outer: Outer, layer: int | None, name: str, layers: int) -> int:
    """Fragment of a parameter; what belongs to no layer goes with its end: the embedding first, the rest last.

    It depends on the model alone, never on the layout, so every layout has the same fragments.
    """
    count = fragment_count(outer, layers)
    if layer is None:
        return 0 if "emb" in name else count - 1
    return (
        layer % count
        if outer.fragment_order == "strided"
        else min(layer // (outer.fragment_layers or layers), count - 1)
    )


def send_offset(outer: Outer, fragment: int, count: int) -> int:
    """t_p: fragment p is sent after the inner steps t with t mod H = t_p (1-based t); evenly staggered."""
    return fragment * outer.interval // count


def round_of(outer: Outer, layers: int) -> Round:
    """When the exchanges of a round of H inner steps come."""
    count, tau = fragment_count(outer, layers), outer.overlap_steps or 0
    offsets = [send_offset(outer, fragment, count) for fragment in range(count)]
    phases = frozenset(t % outer.interval for offset in offsets for t in (offset, offset + tau))
    late = outer.algorithm in ("delayed", "eager")  # nothing is received after the first round
    return Round(outer.interval, phases, 2 * outer.interval if late else tau + 1)


def receiving_phases(outer: Outer, layers: int) -> frozenset[int]:
    """t mod H of the inner steps after which something is applied."""
    count, tau = fragment_count(outer, layers), outer.overlap_steps or 0
    return frozenset((send_offset(outer, p, count) + tau) % outer.interval for p in range(count))


def first_outer_step(outer: Outer) -> int:
    """Inner steps until an outer step has moved every parameter: fragment 0 is first sent after H of them."""
    late = outer.algorithm in ("delayed", "eager")
    return outer.interval * (2 if late else 1) + (outer.overlap_steps or 0)


def steps_after_outer(outer: Outer, steps: int) -> int:
    """Inner steps at the end of a run of `steps` that no outer step follows (streaming: of fragment 0)."""
    return (steps - (outer.overlap_steps or 0)) % outer.interval


def plan(
    outer: Outer, sizes: Sequence[int], fragments: Sequence[int] | None = None, count: int = 1
) -> list[list[BucketPlan]]:
    """Buckets of each of the `count` fragments, in the order in which they are sent.

    sizes: local elements of each parameter; fragments: the fragment of each, 0 where left out.
    """
    fragments = fragments if fragments is not None else [0] * len(sizes)
    members: list[dict[int, int]] = [{} for _ in range(count)]
    for index, (size, fragment) in enumerate(zip(sizes, fragments, strict=True)):
        if size and fragment < count:
            members[fragment][index] = size
    return [list(_buckets(outer, of_fragment)) for of_fragment in members]


def _buckets(outer: Outer, sizes: Mapping[int, int]) -> Iterator[BucketPlan]:
    """sizes: local elements of each parameter of a fragment, by its index."""
    block = outer.block_size or 1
    limit = in_use(outer.bucket_mb) * 2**20 / 4
    indices: list[int] = []
    offsets: list[int] = []
    end = 0
    for index, size in sizes.items():
        padded = -(-size // block) * block
        if indices and end + padded > limit:
            yield _bucket(outer, indices, offsets, end)
            indices, offsets, end = [], [], 0
        indices.append(index)
        offsets.append(end)
        end += padded
    if indices:
        yield _bucket(outer, indices, offsets, end)


def _bucket(outer: Outer, indices: Sequence[int], offsets: Sequence[int], end: int) -> BucketPlan:
    pieces = (outer.block_size or 1) * outer.replicas if outer.exchange == "twoshot" else 1  # alike, of whole blocks
    return BucketPlan(tuple(indices), tuple(offsets), -(-end // pieces) * pieces)


def payload_bytes(outer: Outer, numel: int) -> int:
    """Bytes of one replica's message for a bucket of `numel` elements (padding included).

    fp32 carries one element more, the squared norm of the replica's pseudo-gradient, from which the replicas'
    drift and cosine are computed; packed messages are decoded one by one and need none.
    """
    if outer.compression == "none":
        return 4 * (numel + 1)
    if outer.compression == "bf16":
        return 2 * numel
    blocks = numel // in_use(outer.block_size)
    if outer.compression == "topk":
        return blocks * outer.kept_per_block * (2 + 2)  # bf16 value, 16-bit position in the block
    return blocks * 4 + numel * (8 if outer.compression == "int8" else 4) // 8  # fp32 scale a block, codes


def bytes_per_sync(outer: Outer, sizes: Sequence[int], fragments: Sequence[int] | None = None, count: int = 1) -> int:
    """Bytes one rank passes to the link in one synchronisation of all its parameters, i.e. every H inner steps.

    This is the message, the size that does not depend on the collective's algorithm; `wire_bytes` is what it moves.
    """
    if outer.algorithm == "none":
        return 0
    numels = [b.numel for buckets in plan(outer, sizes, fragments, count) for b in buckets]
    whole = sum(payload_bytes(outer, numel) for numel in numels)
    if outer.exchange != "twoshot":
        return whole
    return whole + whole // outer.replicas + NORM_BYTES * len(numels)  # and the piece of the sum


def wire_bytes(outer: Outer, message_bytes: int) -> float:
    """Bytes one rank puts on the link for messages of that size: a ring's all-reduce (fp32) or all-gather (packed), or
    both shots (all but the norms, 8 bytes a bucket).

    Patarasuk & Yuan, J. Parallel Distrib. Comput. 69 (2009) 117, section 3: the least that an all-reduce can move.
    """
    peers = outer.placed_replicas - 1
    if outer.exchange == "twoshot":
        return message_bytes * 2 * peers / (outer.placed_replicas + 1)
    return message_bytes * (2 * peers / outer.placed_replicas if outer.compression == "none" else peers)


def state_bytes(outer: Outer, numel: int) -> int:
    """Bytes a rank keeps for its outer steps, beside the replicas themselves. numel: its parameters, padding aside."""
    if outer.algorithm == "none":
        return 0
    local = outer.replicas // outer.placed_replicas
    eager = local if outer.algorithm == "eager" else 0
    kept = max(1, eager) * (2 if outer.momentum else 1) + eager  # copies of the outer parameters, with their momentum
    if outer.compression == "none":
        # The message; folded, the replica to be added to it; with a quorum, everybody's.
        return 4 * numel * (kept + 1 + (local > 1) + (outer.replicas if outer.quorum else 0))
    residuals = local if outer.error_decay else 0
    owned, messages = 0.0, outer.replicas
    if outer.exchange == "twoshot":
        owned = residuals / outer.replicas  # the owner's residual
        messages = outer.replicas if local > 1 else 2  # one sent and one received
    # The vector at work and the sum, too.
    return round(4 * numel * (kept + 2 + residuals + owned)) + messages * payload_bytes(outer, numel)
