"""What a rank hands to collectives in a step, by collective and by dimension of the mesh, as `comm_...` columns count.

Bytes are of the message: the tensor of an all-reduce or a send, the whole gathered tensor of an all-gather, the whole
input of a reduce-scatter or all-to-all; a send counts at the sender. The torch engine's messages are here to the byte
and to the call; `other_engines.py` has those of deepspeed and megatron.

b, s, w: sequences, positions on this rank and width of a microbatch; e: bytes of an element; t = tp.

    tensor parallel, a block      b s w e, twice forward and twice backward each: all-gather and reduce-scatter (sp), or
                                  all-reduce; once on the way out of the embedding and once into the head
    loss over a split vocabulary  all-reduces of 4 b s and of 8 b s bytes; else the whole logits are gathered
    context parallel, a block     keys and values of all positions, forward and backward; ulysses: q, k, v and the
                                  context, forward and backward
    pipeline                      b s w e (/ t under sp) for each microbatch and each border of stages, each way
    sharded data parallel         a block's parameters (gathers.py), its fp32 gradients once; what is outside of blocks
                                  likewise; over dp_replicate the shard's gradients once
    replicated data parallel      fp32 gradients once, in buckets of 1 and then 25 MiB
    gradient norm                 one number
    outer steps                   diloco/plan.py
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...bench.message_totals import Totals, totals
from ...bench.recipe import Recipe
from ...bench.shape import ModelShape
from ..diloco.config import Outer
from ..diloco.plan import NORM_BYTES, fragment_count, fragment_of, payload_bytes, plan, receiving_phases
from ..layout import V_SHAPED, Layout, stage_layers, stages_of_rank
from .gathers import gathers_in_pipeline, gathers_without_pipeline

FP32 = 4
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes after which DDP closes a bucket: its first, all others
EDGES = ("dp_replicate", "dp_shard", "cp", "tp", "pp")


@dataclass
class Messages:
    """Bytes and calls by (collective, dimension)."""

    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, kind: str, dimension: str, message_bytes: float, times: float = 1) -> None:
        """`times` messages of so many bytes each."""
        if times:
            self.bytes[kind, dimension] += message_bytes * times  # type: ignore[assignment]
            self.calls[kind, dimension] += times  # type: ignore[assignment]

    def add_all(self, other: Messages, times: float = 1) -> None:
        for key, calls in other.calls.items():
            self.bytes[key] += other.bytes[key] * times  # type: ignore[assignment]
            self.calls[key] += calls * times  # type: ignore[assignment]

    def totals(self) -> Totals:
        """By collective, and by dimension."""
        return totals(self.bytes, self.calls)


@dataclass(frozen=True)
class Parameter:
    """One of this rank's, as tensor parallelism has cut it."""

    name: str
    rows: int  # its first dimension, along which FSDP cuts it
    rest: int  # elements of a row
    layer: int | None = None
    partial: bool = False  # each tensor-parallel rank has a part of its gradient only

    def gathered(self, shards: int) -> int:
        """Elements of the whole, padded to equal shards."""
        return -(-self.rows // shards) * shards * self.rest

    def local(self, shards: int, shard: int) -> int:
        """Elements of one shard."""
        each = -(-self.rows // shards)
        return max(0, min(each, self.rows - shard * each)) * self.rest


def step_messages(
    shape: ModelShape, recipe: Recipe, layout: Layout, outer: Outer | None = None, place: int = 0, shard: int = 0
) -> Messages:
    """Of one rank in a step (with an outer loop: an inner step and its share of a round's outer steps).

    place: of the rank in the pipeline; shard: among the ranks that share parameters. The layout is one that the torch
    engine does not refuse.
    """
    rank = TorchRank(shape, recipe, layout, outer or Outer(), place, shard)
    found = Messages()
    folded = rank.outer.replicas // rank.outer.placed_replicas
    found.add_all(rank.inner_step(), folded)
    if rank.outer.algorithm != "none":
        found.add_all(rank.round(), 1 / rank.outer.interval)
    return found


def all_messages(shape: ModelShape, recipe: Recipe, layout: Layout, outer: Outer | None = None) -> Messages:
    """Summed over all ranks, as the columns `comm_bytes_...` are."""
    outer, found = outer or Outer(), Messages()
    for place in range(layout.pp):
        rank = TorchRank(shape, recipe, layout, outer, place, 0)
        even = all(each.rows % rank.shards == 0 for each in rank.parameters())
        shards = range(1 if even else rank.shards)
        for shard in shards:
            ranks = layout.ranks * outer.placed_replicas / layout.pp / len(shards)
            found.add_all(step_messages(shape, recipe, layout, outer, place, shard), ranks)
    return found


class TorchRank:
    """A rank of the torch engine."""

    def __init__(self, shape: ModelShape, recipe: Recipe, layout: Layout, outer: Outer, place: int, shard: int) -> None:
        self.shape, self.recipe, self.layout, self.outer, self.shard = shape, recipe, layout, outer, shard
        self.place, self.element = place, 2 if recipe.precision == "bf16" else FP32
        self.stages = stages_of_rank(place, layout)
        self.layers = stage_layers(shape.layers, layout.stages)
        self.first, self.last = 0 in self.stages, layout.stages - 1 in self.stages
        self.sequences = recipe.global_batch // (layout.dp * outer.replicas * layout.microbatches)
        self.positions = shape.seq_len // layout.cp
        self.shards = layout.dp_shard * layout.cp if layout.sharded else 1
        self.over_shards = "dp_shard" if layout.dp_shard > 1 else "cp"

    @property
    def blocks(self) -> int:
        return sum(len(self.layers[stage]) for stage in self.stages)

    @property
    def stream(self) -> int:
        """Bytes of a microbatch in the residual stream."""
        return self.sequences * self.positions * self.shape.width * self.element

    def inner_step(self) -> Messages:
        found = Messages()
        if self.layout.tp > 1:
            found.add_all(self._tensor_parallel(), self.layout.microbatches)
            self._partial_gradients(found)
        if self.layout.cp > 1:
            found.add_all(self._context_parallel(), self.layout.microbatches)
        if self.layout.pp > 1:
            self._sends(found)
        if self.layout.sharded:
            self._sharded(found)
        elif self.layout.dp_replicate > 1:
            for nbytes in self._buckets():
                found.add("all_reduce", "dp_replicate", nbytes)
        self._norm(found)
        return found

    # The parts, each of a microbatch or of a step.

    def _tensor_parallel(self) -> Messages:
        """Of a microbatch."""
        found, layout = Messages(), self.layout
        # A block that is computed again repeats what comes before the last tensor that its backward pass needs: all
        # but the way out of its MLP.
        again = layout.recompute != "none"
        enter, leave = 2 * self.blocks, 2 * self.blocks
        if layout.sp:
            # Forward: gathers on the way in, scatters on the way out; backward the other way round.
            both = enter + leave + self.first + self.last
            found.add("all_gather", "tp", self.stream, both + 2 * self.blocks * again)
            found.add("reduce_scatter", "tp", self.stream, both + self.blocks * again)
        else:
            found.add("all_reduce", "tp", self.stream, enter + leave + self.first + self.last + self.blocks * again)
        if self.last:
            tokens = self.sequences * self.positions
            if layout.loss_parallel:
                found.add("all_reduce", "tp", FP32 * tokens)
                found.add("all_reduce", "tp", 2 * FP32 * tokens)
            else:
                found.add("all_gather", "tp", FP32 * tokens * self.shape.vocab)
        return found

    def _partial_gradients(self, found: Messages) -> None:
        partial = [each for each in self.parameters() if each.partial]
        if partial:
            elements = sum(each.local(self.shards, self.shard) for each in partial)
            found.add("all_reduce", "tp", FP32 * elements)

    def _context_parallel(self) -> Messages:
        """Of a microbatch."""
        found, shape, layout = Messages(), self.shape, self.layout
        passes = 2 + (layout.recompute != "none")
        tokens = self.sequences * self.positions * self.element
        kv_width = shape.kv_heads * shape.head_dim // layout.tp
        if layout.cp_method == "ulysses":
            for width, tensors in ((shape.width // layout.tp, 2), (kv_width, 2)):
                found.add("all_to_all", "cp", tokens * width, tensors * passes * self.blocks)
        else:
            whole = 2 * tokens * layout.cp * kv_width
            found.add("all_gather", "cp", whole, (passes - 1) * self.blocks)
            found.add("reduce_scatter", "cp", whole, self.blocks)
        return found

    def _sends(self, found: Messages) -> None:
        layout = self.layout
        nbytes = self.stream // (layout.tp if layout.sp else 1)
        own = set(self.stages) if layout.pp_schedule in V_SHAPED else set()  # neighbours on one rank send nothing
        for stage in self.stages:
            forward = stage + 1 < layout.stages and stage + 1 not in own
            backward = stage > 0 and stage - 1 not in own
            found.add("send_recv", "pp", nbytes, (forward + backward) * layout.microbatches)

    def _sharded(self, found: Messages) -> None:
        """Of a step."""
        for stage in self.stages:
            blocks, others = self._gathers(stage)
            groups = [(list(self._block(layer)), blocks) for layer in self.layers[stage]]
            groups.append((list(self._outside(stage)), others))
            for group, times in groups:
                if group:
                    self._sharded_group(found, sum(each.gathered(self.shards) for each in group), times)

    def _sharded_group(self, found: Messages, elements: int, gathers: int) -> None:
        if self.shards > 1:
            found.add("all_gather", self.over_shards, elements * self.element, gathers)
            found.add("reduce_scatter", self.over_shards, elements * FP32)
        if self.layout.dp_replicate > 1:
            found.add("all_reduce", "dp_replicate", elements // self.shards * FP32)

    def _gathers(self, stage: int) -> tuple[int, int]:
        layout = self.layout
        if layout.pp == 1:
            return gathers_without_pipeline(layout.microbatches, layout.reshard_after_forward)
        of_stages = gathers_in_pipeline(
            layout.pp_schedule,
            layout.pp,
            layout.virtual_stages,
            layout.microbatches,
            self.place,
            layout.reshard_after_forward,
        )
        return of_stages[stage]

    def _buckets(self) -> list[int]:
        """Bytes of DDP's: gradients in the order in which they come, a bucket closed once it is full."""
        buckets, size, limit = [], 0, FIRST_BUCKET
        for parameter in reversed(list(self.parameters())):
            size += parameter.rows * parameter.rest * FP32
            if size >= limit:
                buckets.append(size)
                size, limit = 0, BUCKET
        return buckets + ([size] if size else [])

    def _norm(self, found: Messages) -> None:
        """Of the gradients: one number; none where every rank has all of them."""
        layout = self.layout
        alone = layout.sharded or layout.tp * layout.pp > 1
        if alone:
            found.add("all_reduce", self.inside, FP32)

    @property
    def inside(self) -> str:
        """What the ranks of a replica count as: the one dimension that they are, or nothing."""
        layout = self.layout
        wide = [name for name in EDGES if getattr(layout, name) > 1]
        if len(wide) == 1:
            return wide[0]
        if set(wide) == {"dp_shard", "cp"}:
            return "dp_shard"
        return "inside" if self.outer.placed_replicas > 1 else "world"

    def round(self) -> Messages:
        """Of all outer steps of a round of H inner steps."""
        found, outer, layers = Messages(), self.outer, self.shape.layers
        if outer.placed_replicas > 1:
            parameters = list(self.parameters())
            sizes = [each.local(self.shards, self.shard) for each in parameters]
            count = fragment_count(outer, layers)
            fragments = [fragment_of(outer, each.layer, each.name, layers) for each in parameters]
            for bucket in (each for buckets in plan(outer, sizes, fragments, count) for each in buckets):
                for kind, nbytes in _of_bucket(outer, bucket.numel):
                    found.add(kind, "replicas", nbytes)
        if self.layout.ranks > 1 and outer.replicas > 1:
            found.add("all_reduce", self.inside, 2 * FP32, len(receiving_phases(outer, layers)))
        return found

    # The parameters, in the order of the module that has them.

    def parameters(self) -> Iterator[Parameter]:
        for stage in self.stages:
            last = stage == self.layout.stages - 1
            outside = list(self._outside(stage))
            yield from (each for each in outside if each.name.startswith("embedding"))
            for layer in self.layers[stage]:
                yield from self._block(layer)
            if last:
                yield from (each for each in outside if not each.name.startswith("embedding"))

    def _outside(self, stage: int) -> Iterator[Parameter]:
        shape, tp = self.shape, self.layout.tp
        first, last = stage == 0, stage == self.layout.stages - 1
        if first or (last and shape.tied):
            yield Parameter("embedding.weight", shape.vocab // tp, shape.width)
        if last:
            yield Parameter("norm.weight", shape.width, 1, partial=tp > 1 and self.layout.sp)
            if not shape.tied:
                yield Parameter("head.weight", shape.vocab // tp, shape.width)

    def _block(self, layer: int) -> Iterator[Parameter]:
        shape, tp, partial = self.shape, self.layout.tp, self.layout.tp > 1
        width, kv_width = shape.width, shape.kv_heads * shape.head_dim
        norm = partial and self.layout.sp
        at = f"blocks.{layer}."
        yield Parameter(at + "attention_norm.weight", width, 1, layer, norm)
        for name, rows, rest in (
            ("wq", width // tp, width),
            ("wk", kv_width // tp, width),
            ("wv", kv_width // tp, width),
            ("wo", width, width // tp),
        ):
            yield Parameter(f"{at}attention.{name}.weight", rows, rest, layer)
        if shape.qk_norm:
            for name in ("q_norm", "k_norm"):
                yield Parameter(f"{at}attention.{name}.weight", shape.head_dim, 1, layer, partial)
        yield Parameter(at + "mlp_norm.weight", width, 1, layer, norm)
        for name in ("gate", "up") if shape.mlp == "swiglu" else ("up",):
            yield Parameter(f"{at}mlp.{name}.weight", shape.ffn // tp, width, layer)
        yield Parameter(at + "mlp.down.weight", width, shape.ffn // tp, layer)


def _of_bucket(outer: Outer, numel: int) -> list[tuple[str, int]]:
    """(collective, bytes) of one exchange of a bucket."""
    message = payload_bytes(outer, numel)
    if outer.compression == "none":
        return [("all_reduce", message)]
    if outer.exchange == "twoshot":
        return [("all_to_all", message), ("all_gather", message + NORM_BYTES * outer.replicas)]
    return [("all_gather", outer.replicas * message)]
