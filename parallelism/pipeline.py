"""Pipeline parallelism: the blocks cut into stages, run by one of torch's schedules.

GPipe (arXiv 1811.06965), 1F1B (2104.04473, section 2.2), interleaved 1F1B and looped BFS (2104.04473; 2211.05953),
zero-bubble (2401.10241) and DualPipeV (DeepSeek-V3, 2412.19437). Stage i of n is on rank i mod pp; the V-shaped
schedules put stage n - 1 - i there too, so that the last stage sits beside the first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..bench.model import COMPUTE_DTYPES
from ..bench.shape import ModelShape
from .layout import Layout, stages_of_rank
from .mesh import Mesh

LossFn = Callable[[Tensor, Tensor], Tensor]


class Pipeline:
    """The stages of this rank and the schedule that runs them.

    parts: one module per stage of stages_of_rank; loss_fn(logits, targets) is the loss of one microbatch, its share
    of the whole step's; rows: sequences of one microbatch.
    """

    def __init__(
        self,
        parts: list[nn.Module],
        shape: ModelShape,
        layout: Layout,
        mesh: Mesh,
        rows: int,
        precision: str,
        loss_fn: LossFn,
        device: torch.device,
    ) -> None:
        from torch.distributed.pipelining import PipelineStage
        from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class

        self.group, self.layout, self.device, self.rows = mesh.groups["pp"], layout, device, rows
        self.rank = dist.get_rank(self.group)
        self.parts = dict(zip(stages_of_rank(self.rank, layout), parts, strict=True))
        self.last = layout.stages - 1
        tokens = shape.seq_len // layout.cp
        held = tokens // layout.tp if layout.sp else tokens
        self.hidden = torch.empty(rows, held, shape.width, dtype=COMPUTE_DTYPES[precision], device="meta")
        vocab = shape.vocab // layout.tp
        logits = torch.empty(rows, tokens, vocab, dtype=COMPUTE_DTYPES[precision], device="meta")
        token_ids = torch.empty(rows, tokens, dtype=torch.int64, device="meta")
        stages = [
            PipelineStage(
                part,
                index,
                layout.stages,
                device,
                group=self.group,
                input_args=(token_ids if index == 0 else self.hidden.clone().requires_grad_(),),
                output_args=((logits if index == self.last else self.hidden).clone().requires_grad_(),),
            )
            for index, part in self.parts.items()
        ]
        kind = get_schedule_class(layout.pp_schedule)
        single = issubclass(kind, PipelineScheduleSingle)
        self.schedule = kind(
            stages[0] if single else stages, n_microbatches=layout.microbatches, loss_fn=loss_fn, scale_grads=False
        )

    def train(self, inputs: Tensor, targets: Tensor) -> None:
        """Forward and backward of all microbatches; gradients are left in the parameters."""
        arguments = (inputs,) if 0 in self.parts else ()
        self.schedule.step(*arguments, target=targets if self.last in self.parts else None, return_outputs=False)

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor | None:
        """Logits of one microbatch on the rank of the last stage, None elsewhere."""
        owner = {stage: rank for rank in range(self.layout.pp) for stage in stages_of_rank(rank, self.layout)}
        x = inputs
        for stage in range(self.layout.stages):
            if stage in self.parts:
                if stage > 0 and owner[stage - 1] != self.rank:
                    x = torch.empty_like(self.hidden, device=self.device)
                    dist.recv(x, group=self.group, group_src=owner[stage - 1])
                x = self.parts[stage](x)
                if stage < self.last and owner[stage + 1] != self.rank:
                    dist.send(x.contiguous(), group=self.group, group_dst=owner[stage + 1])
        return x if self.last in self.parts else None
