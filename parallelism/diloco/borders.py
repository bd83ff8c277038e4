"""One process whose parameters are taken apart as a layout cuts them: what compressed layouts are verified against.

The codecs scale blocks of a rank's own part of each parameter, so where parameters are cut otherwise, a message is
rounded otherwise (1e-4 to 3e-3 of a loss in ten steps). Compressed part by part, the whole model in one process is
rounded as it is by the ranks of that layout.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...bench.engine import LocalParameter
from ...bench.recipe import Recipe
from ...bench.shape import ModelShape
from ..layout import Layout
from ..mesh import Mesh
from ..tensor import COLUMNS, ROWS
from ..torch_engine import TorchEngine


class CutEngine(TorchEngine):
    """borders: the layout whose ranks' parts the local parameters are, as views of the whole ones."""

    def __init__(
        self, shape: ModelShape, recipe: Recipe, layout: Layout, mesh: Mesh, device: torch.device, borders: Layout
    ) -> None:
        super().__init__(shape, recipe, layout, mesh, device)
        self.borders = borders.cuts

    def local_parameters(self) -> Iterator[LocalParameter]:
        """Tensor parallelism cuts matrices by rows or by columns, FSDP2 then every part by rows."""
        for parameter in super().local_parameters():
            owner = parameter.name.split(".")[-2]
            ways = self.borders.tp if owner in COLUMNS + ROWS else 1
            for part in parameter.data.chunk(ways, dim=1 if owner in ROWS else 0):
                for shard in part.chunk(self.borders.dp_shard):
                    yield LocalParameter(parameter.name, shard, parameter.layer)
