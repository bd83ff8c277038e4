"""The engine of a run with replicas: inner engines that compute the steps, and the outer algorithm between them.

Each replica is an engine of its own, built by the same function as a run without replicas, on its part of the global
batch. Folded replicas are several engines in one process that take turns: nothing is swapped between their steps, and
only the optimizer states wait in host memory where `offload` asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from ...bench.checkpoint_files import Outgoing, Saved
from ...bench.comm_probe import CommProbe, uncounted
from ...bench.device import mark
from ...bench.engine import Engine, Evaluation, LocalParameter, StepOutput
from ...bench.recipe import Recipe
from ...bench.weights import Weights
from ..state_file import read_state, write_state
from .algorithm import Algorithm, Exchange
from .config import Outer
from .diloco import DiLoCo
from .eager import Delayed, Eager
from .link import Link
from .localsgd import LocalSGD
from .offload import HostStash
from .plan import receiving_phases, round_of
from .quorum import Meeting, MeetingLink, Quorate
from .streaming import Streaming

ALGORITHMS: dict[str, type[Algorithm]] = {
    "localsgd": LocalSGD,
    "diloco": DiLoCo,
    "streaming": Streaming,
    "delayed": Delayed,
    "eager": Eager,
}


def build_outer(
    outer: Outer,
    recipe: Recipe,
    layers: int,
    make_engine: Callable[[Recipe], Engine],
    *,
    replica_group: dist.ProcessGroup | None,
    replica_index: int,
    inner_group: dist.ProcessGroup | None,
    meeting: Meeting | None = None,
) -> Engine:
    """The engine of a run, whatever its replicas. Collective.

    make_engine: builds an engine for one replica's recipe (its share of the global batch).
    replica_group: this rank and those at its position in the other replicas; None where all replicas are here.
    replica_index: this process's place in that group. inner_group: the ranks of this replica; None: this one alone.
    meeting: where the replicas exchange in the place of replica_group; with a quorum, and then only.
    """
    if outer.algorithm == "none":
        return make_engine(recipe)
    own = replace(recipe, global_batch=recipe.global_batch // outer.replicas)
    local = outer.replicas // outer.placed_replicas
    assert bool(outer.quorum) == (meeting is not None)
    link: Link = (
        MeetingLink(outer.replicas, local, meeting=meeting)
        if meeting
        else Link(outer.replicas, local, replica_group if outer.placed_replicas > 1 else None)
    )
    engines = [make_engine(own) for _ in range(local)]
    return OuterEngine(
        outer,
        engines,
        link,
        layers=layers,
        replica_batch=own.global_batch,
        first_replica=replica_index * local,
        inner_group=inner_group,
    )


class OuterEngine:
    """An `Engine`. The loss is the mean over all replicas; the gradient norm is that of the replicas in this process.
    With a quorum both are this replica's alone, and every replica evaluates all rows.

    Columns of `steps` it adds, all for this rank:
    outer_step: 1 where an outer step was applied after this step, else 0
    outer_bytes: bytes of the messages handed to the link
    outer_exposed_s: seconds the training waited; outer_time_s: with those hidden behind inner steps (gloo)
    replica_drift: sqrt(mean_m |theta_m - mean theta|^2) over the fragments received; not under topk
    pseudograd_cosine: mean cosine of two replicas' pseudo-gradients, each pair weighted by its norms
    replicas_present: with a quorum, replicas whose pseudo-gradients are in the outer step
    """

    def __init__(
        self,
        outer: Outer,
        engines: Sequence[Engine],
        link: Link,
        *,
        layers: int,
        replica_batch: int,
        first_replica: int = 0,
        inner_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.outer, self.engines, self.link = outer, list(engines), link
        self.replica_batch, self.first_replica, self.inner_group = replica_batch, first_replica, inner_group
        self.layers = layers
        self.steps_done = self.skip_until = 0
        self.waits_on_host = getattr(engines[0], "waits_on_host", False)
        self.averaged = len(engines) if outer.quorum else outer.replicas  # of whose losses the mean is taken
        replicas = [list(engine.local_parameters()) for engine in engines]
        self.device = replicas[0][0].data.device
        algorithm = Quorate if outer.quorum else ALGORITHMS[outer.algorithm]
        self.algorithm = algorithm(outer, replicas, link, layers)
        self.stashes = [HostStash(engine) for engine in engines] if outer.offload else None

    # The batch: replica m has rows [m b, (m + 1) b) of the M b; inside, its engine says which of them this rank reads.

    def rows(self) -> tuple[int, int]:
        start = self.first_replica * self.replica_batch
        if len(self.engines) > 1:
            return start, start + len(self.engines) * self.replica_batch
        first, last = self.engines[0].rows()
        return start + first, start + last

    def eval_rows(self) -> tuple[int, int]:
        """Rows of the global batch to evaluate on: with a quorum each replica takes all of them."""
        if not self.outer.quorum:
            return self.rows()
        first, last = self.engines[0].rows()
        return first * self.outer.replicas, last * self.outer.replicas

    def _parts(self, *rows: Tensor) -> Iterator[tuple[int, Engine, tuple[Tensor, ...]]]:
        if len(self.engines) == 1:
            yield 0, self.engines[0], rows
            return
        for r, engine in enumerate(self.engines):
            first, last = engine.rows()
            start = r * self.replica_batch
            yield r, engine, tuple(each[start + first : start + last] for each in rows)

    def train_step(self, tokens: Tensor, lr: float) -> StepOutput:
        if self.steps_done < self.skip_until:  # the other replicas have done this step without this one
            self.steps_done += 1
            nothing = torch.zeros((), device=self.device)
            return StepOutput(nothing, nothing, {"outer_step": 0.0, "outer_bytes": 0.0, "outer_exposed_s": 0.0})
        outputs = []
        for r, engine, (part,) in self._parts(tokens):
            with self._on_device(r):
                outputs.append(engine.train_step(part, lr))
        self.steps_done += 1
        loss = _sum(output.loss for output in outputs) / self.averaged
        grad_norm = _sum(output.grad_norm for output in outputs) / len(outputs)
        began, ended = outputs[0].update_began if len(outputs) == 1 else None, mark(self.device)
        return StepOutput(loss, grad_norm, outputs[0].extra | self._outer_step(), began, ended)

    def _on_device(self, replica: int) -> AbstractContextManager[None]:
        return self.stashes[replica].on_device() if self.stashes else nullcontext()

    def _outer_step(self) -> dict[str, float | Tensor]:
        if not self.algorithm.due(self.steps_done):
            return {"outer_step": 0.0, "outer_bytes": 0.0, "outer_exposed_s": 0.0}
        self._finish_device()
        start = time.perf_counter()
        with uncounted():
            exchange = self.algorithm.exchange(self.steps_done)
            self.parameters_written()
            self.skip_until = max(self.skip_until, exchange.go_on_after)
            self._finish_device()
            exposed_s = time.perf_counter() - start
            return {
                "outer_step": float(exchange.received_any),
                "outer_bytes": float(exchange.sent_bytes),
                "outer_exposed_s": exposed_s,
                "outer_time_s": exposed_s + exchange.hidden_s,
                **self._spread(exchange),
            }

    def count_round(self) -> CommProbe:
        """What this rank passes to collectives in the outer steps of one round of H inner steps. Collective in the
        replica; nothing is exchanged between them, and no exchange is watched, which would take longer for it.

        The messages between the replicas are counted as their buffers are handed over; what the engines send when
        their parameters have been written, and the sum of the norms, as they are sent here once.
        """
        talks, layers = self.engines[0].talks(), self.layers
        counted, written, norms = (CommProbe(talks) for _ in range(3))
        for bucket in self.algorithm.buckets() if self.link.sends else ():
            for kind, message_bytes in bucket.channel.messages():
                counted.add(kind, "replicas", message_bytes)
        with written:
            self.parameters_written()
        with norms:
            if self.inner_group is not None and self.outer.replicas > 1:
                dist.all_reduce(torch.zeros(2, device=self.device), group=self.inner_group)
        counted.add_times(len(round_of(self.outer, layers).phases), written)
        counted.add_times(len(receiving_phases(self.outer, layers)), norms)
        return counted

    def _finish_device(self) -> None:
        if self.device.type != "cpu":  # this stream only: collectives that overlap run on another
            torch.accelerator.current_stream().synchronize()

    def _spread(self, exchange: Exchange) -> dict[str, float | Tensor]:
        """S = sum_m D_m:  mean |D_m - S/M|^2 = mean |D_m|^2 - |S/M|^2,  sum_{i != j} D_i D_j = |S|^2 - sum |D_m|^2."""
        count = exchange.present or self.outer.replicas
        spread: dict[str, float | Tensor] = {}
        if exchange.present is not None:
            spread["replicas_present"] = float(exchange.present)
        if not exchange.received_any or count == 1:
            return spread
        norms = torch.zeros(2, device=self.device)  # also where a rank holds nothing of the fragment
        if exchange.squares:
            norms += torch.stack([torch.stack(exchange.total_square).sum(), torch.stack(exchange.squares).sum()])
        if self.inner_group is not None:
            dist.all_reduce(norms, group=self.inner_group)
        total_square, squares = norms
        spread["pseudograd_cosine"] = (total_square - squares) / ((count - 1) * squares)
        if self.outer.compression != "topk":  # what top-k sends is not where the replica stands
            spread["replica_drift"] = (squares / count - total_square / count**2).clamp(min=0).sqrt()
        return spread

    # Evaluation is on the outer parameters first: they are the model that is trained.

    def evaluations(self) -> dict[str, Evaluation]:
        """`outer`, and `inner`: each replica with its own parameters on its own rows."""
        return {"outer": self._eval_outer, "inner": self._eval_inner}

    def _eval_outer(self, tokens: Tensor, counted: Tensor) -> Tensor:
        with self._outer_weights():
            return self._eval_inner(tokens, counted)

    def _eval_inner(self, tokens: Tensor, counted: Tensor) -> Tensor:
        return _sum(
            next(iter(engine.evaluations().values()))(*part) for _, engine, part in self._parts(tokens, counted)
        )

    @contextmanager
    def _outer_weights(self) -> Iterator[None]:
        pairs = [self.algorithm.outer_parameters(r) for r in range(len(self.engines))]
        inner = [[parameter.clone() for parameter, _ in replica] for replica in pairs]
        with torch.no_grad():
            for replica in pairs:
                torch._foreach_copy_([parameter for parameter, _ in replica], [outer for _, outer in replica])
        self.parameters_written()
        try:
            yield
        finally:
            with torch.no_grad():
                for replica, values in zip(pairs, inner, strict=True):
                    torch._foreach_copy_([parameter for parameter, _ in replica], values)
            self.parameters_written()

    def parameters_written(self) -> None:
        for engine in self.engines:
            engine.parameters_written()

    # Of a run with replicas, the outer parameters are the model.

    def weights(self) -> Weights:
        with self._outer_weights():
            return self.engines[0].weights()

    def set_weights(self, weights: Weights | None) -> None:
        """Into every replica of this process, before the first step: the outer parameters begin where they begin."""
        assert not self.steps_done
        for r, engine in enumerate(self.engines):
            engine.set_weights(weights)
            with torch.no_grad():
                for inner, outer in self.algorithm.outer_parameters(r):
                    outer.copy_(inner)

    def local_parameters(self) -> Iterator[LocalParameter]:
        """Those of this process's first replica."""
        return self.engines[0].local_parameters()

    def talks(self) -> dict[str, tuple[int, ...]]:
        return self.engines[0].talks()  # `replicas` among them: the engine was built on the whole mesh

    # Checkpoints: each replica's engine in a folder of its own, and each rank's outer state beside it. The outer state
    # is loaded under the same layout and placement only.

    def _outer_file(self) -> str:
        rank = dist.get_rank(self.inner_group) if self.inner_group is not None else 0
        return f"outer-replica{self.first_replica}-rank{rank}.safetensors"

    def save(self, out: Outgoing) -> None:
        for r, engine in enumerate(self.engines):
            with self._on_device(r):
                engine.save(out.within(f"replica{self.first_replica + r}"))
        outer = {"steps_done": self.steps_done, "algorithm": self.algorithm.state()}
        write_state(out, self._outer_file(), outer)

    def load(self, saved: Saved) -> None:
        if not saved.has(self._outer_file()):
            raise ValueError(
                f"{self._outer_file()} is missing: it was written under another layout or placement of replicas"
            )
        for r, engine in enumerate(self.engines):
            with self._on_device(r):
                engine.load(saved.within(f"replica{self.first_replica + r}"))
        content = read_state(saved, self._outer_file(), self.device)
        self.steps_done = content["steps_done"]
        self.algorithm.load_state(content["algorithm"])

    def close(self) -> None:
        for bucket in self.algorithm.buckets():
            if bucket.channel.transfer is not None:  # a fragment sent in the last tau steps
                bucket.channel.transfer.wait()
        for engine in self.engines:
            engine.close()


def _sum(values: Iterable[Tensor]) -> Tensor:
    """In their order; from 0, as `sum` adds."""
    return cast(Tensor, sum(values))  # of at least one
