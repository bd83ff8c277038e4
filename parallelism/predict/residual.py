"""What the model leaves of the logarithm of the step time, learnt from hundreds of rows: ridge or trees.

Both see the same features, none of which says which model it is: logarithms of the degrees, the nodes, the microbatches
and the tokens of one, whether stages are in other nodes, and the share of each part in the step that the model
predicts. Ridge is a sum of 14 terms, each held to zero; trees are 60 boosted ones of at most 6 leaves, which learn what
happens only together. What either adds is at most LIMIT either way, so that no regime that was never seen
turns the order of the model round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .configs import Configs
from .step import Step

LIMIT = 0.3  # of a logarithm
FEATURES = (
    "tp",
    "pp",
    "dp",
    "nodes",
    "microbatches",
    "tokens",
    "apart",
    "unsharded",
    "tensor",
    "context",
    "pipeline",
    "data",
    "bubble",
    "optimizer",
)
TREES, LEAVES, ROWS_OF_LEAF, RATE = 60, 6, 15, 0.08
HELD = 20.0  # of the ridge: rows that each coefficient weighs against


class Residual(Protocol):
    """A correction learnt from rows."""

    def of(self, features: np.ndarray) -> np.ndarray:
        """What is added to the logarithm of the model's step time (n,). features: (n, len(FEATURES))."""

    def to_table(self) -> dict[str, Any]: ...


def features_of(configs: Configs, parts: Step, node_ranks: int) -> np.ndarray:
    """What both kinds see, (n, len(FEATURES))."""
    c, n = configs, len(configs)
    nodes = np.maximum(np.asarray(c.all_ranks) / node_ranks, 1.0)
    step = parts.step_time_s
    log = [np.log2(np.asarray(each, float)) for each in (c.tp, c.pp, c.dp, nodes, c.microbatches)]
    rest = [
        np.log2(np.asarray(c.tokens, float) / 4096),
        (np.asarray(c.pp) > 1) & (nodes > 1),
        (np.asarray(c.dp_shard) * c.cp == 1) & (np.asarray(c.dp_replicate) > 1),
        parts.comm_tp_s / step,
        parts.comm_cp_s / step,
        parts.comm_pp_s / step,
        parts.comm_dp_s / step,
        parts.bubble_time_s / step,
        parts.optimizer_time_s / step,
    ]
    return np.stack([np.broadcast_to(np.asarray(each, float), n) for each in (*log, *rest)], axis=1)


@dataclass(frozen=True)
class Ridge:
    """bias + slopes (features - middle) / width."""

    bias: float
    slopes: tuple[float, ...]
    middle: tuple[float, ...]
    width: tuple[float, ...]

    def of(self, features: np.ndarray) -> np.ndarray:
        scaled = np.clip((features - np.array(self.middle)) / np.array(self.width), -3, 3)
        return np.clip(self.bias + scaled @ np.array(self.slopes), -LIMIT, LIMIT)

    def to_table(self) -> dict[str, Any]:
        lists = {name: list(getattr(self, name)) for name in ("slopes", "middle", "width")}
        return {"kind": "ridge", "bias": self.bias, "features": list(FEATURES)} | lists


@dataclass(frozen=True)
class Trees:
    """A sum of trees over the features, each as rows (feature, threshold, left, right, value); feature -1: a leaf."""

    bias: float
    trees: tuple[np.ndarray, ...]  # (nodes, 5) each

    def of(self, features: np.ndarray) -> np.ndarray:
        total = np.full(len(features), self.bias)
        for tree in self.trees:
            total += self._of_tree(tree, features)
        return np.clip(total, -LIMIT, LIMIT)

    @staticmethod
    def _of_tree(tree: np.ndarray, features: np.ndarray) -> np.ndarray:
        at, rows = np.zeros(len(features), int), np.arange(len(features))
        which, sides = tree[:, 0].astype(int), tree[:, 2:4].astype(int)
        while (inner := which[at] >= 0).any():
            right = features[rows, which[at]] > tree[at, 1]
            at = np.where(inner, sides[at, right.astype(int)], at)
        return tree[at, 4]

    def to_table(self) -> dict[str, Any]:
        trees = [tree.tolist() for tree in self.trees]
        return {"kind": "trees", "bias": self.bias, "features": list(FEATURES), "trees": trees}


def fit_ridge(features: np.ndarray, left: np.ndarray, noise: float) -> Ridge:
    """left: (n,) what the model leaves; noise: its deviation among rows that are not slow."""
    middle, width = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-3)
    scaled = np.column_stack([(features - middle) / width, np.ones(len(left))])
    slopes = np.zeros(scaled.shape[1])
    for _ in range(10):
        weights = 1 / (1 + ((left - scaled @ slopes) / noise) ** 2)
        curve = scaled.T @ (scaled * weights[:, None]) + np.diag([HELD] * len(middle) + [1.0])
        slopes = np.linalg.solve(curve, scaled.T @ (weights * left))
    return Ridge(float(slopes[-1]), tuple(map(float, slopes[:-1])), tuple(map(float, middle)), tuple(map(float, width)))


def fit_trees(features: np.ndarray, left: np.ndarray, noise: float) -> Trees:
    """As `fit_ridge`. Raises ValueError where scikit-learn is not installed."""
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError:
        raise ValueError("trees on the residual need scikit-learn: pip install scalade[trees]") from None
    model = HistGradientBoostingRegressor(
        loss="absolute_error",
        max_iter=TREES,
        max_leaf_nodes=LEAVES,
        min_samples_leaf=ROWS_OF_LEAF,
        learning_rate=RATE,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    )
    model.fit(features, np.clip(left, -6 * noise, 6 * noise))
    trees = []
    for (predictor,) in model._predictors:
        nodes = predictor.nodes
        which = np.where(nodes["is_leaf"], -1, nodes["feature_idx"])
        columns = (which, nodes["num_threshold"], nodes["left"], nodes["right"], nodes["value"])
        trees.append(np.column_stack(columns).astype(float))
    return Trees(float(np.ravel(model._baseline_prediction)[0]), tuple(trees))


FITS: dict[str, Callable[[np.ndarray, np.ndarray, float], Residual]] = {"ridge": fit_ridge, "trees": fit_trees}


def residual_from_table(table: dict[str, Any]) -> Residual:
    """Raises ValueError where its kind or its features are not known."""
    if table.get("features") != list(FEATURES):
        raise ValueError("calibration.residual.features: another version's: calibrate again")
    if table.get("kind") == "ridge":
        slopes, middle, width = (tuple(map(float, table[key])) for key in ("slopes", "middle", "width"))
        return Ridge(float(table["bias"]), slopes, middle, width)
    if table.get("kind") == "trees":
        return Trees(float(table["bias"]), tuple(np.array(tree, float) for tree in table["trees"]))
    raise ValueError(f"calibration.residual.kind = {table.get('kind')!r}: allowed are {', '.join(FITS)}")
