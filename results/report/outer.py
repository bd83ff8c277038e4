"""DiLoCo and its family against data parallel: loss and speed for the bytes that one rank hands to the network."""

from __future__ import annotations

import numpy as np

from ..efficiency.fastest import same_training
from ..efficiency.workload import Group
from ..stats.rank_intervals import median
from ..wording import count_of
from .drawing import (
    Drawn,
    Undrawn,
    chunks,
    interval_text,
    legend,
    log_scale,
    look,
    new_figure,
    numbered,
    with_intervals,
)
from .losses import loss_column
from .source import Source, label, positive, work_name


def diloco(source: Source) -> list[Drawn | Undrawn]:
    title = "DiLoCo against data parallel"
    by_work: dict[int, list[Group]] = {}
    for group, work in zip(source.groups, same_training(source.groups), strict=True):
        by_work.setdefault(work, []).append(group)
    ready, folded = [], 0
    for some in by_work.values():
        outer = [group for group in some if _algorithm(group) != "none"]
        plain = [group for group in some if _algorithm(group) == "none" and sent(group.rows[0])]
        talking = [group for group in outer if sent(group.rows[0])]
        apart = sum(group["outer_placement"] == "folded" for group in outer)
        folded += apart
        if talking and plain:
            ready.append((plain + talking, apart))
    if not ready:
        also = f" ({count_of(folded, 'layout')} with an outer loop and folded replicas sent nothing)" if folded else ""
        return [
            Undrawn(
                title,
                "runs with an outer loop beside data parallel ones of the same model, data and recipe, "
                f"with the bytes counted (measure.probe_comm = true){also}",
            )
        ]
    parts, more = chunks(ready, title, 1)
    return more + [
        _figure(source, *numbered("diloco", title, i, len(parts)), *one) for i, (one,) in enumerate(parts, 1)
    ]


def sent(row: dict) -> float | None:
    """Bytes that one rank handed to collectives over the run; None where that was not counted. With an outer loop: in
    its inner steps, and for the outer steps that the run took."""
    inner = _inner_step(row)
    if row.get("steps") is None or inner is None:
        return None
    return inner * row["steps"] + (row.get("outer_bytes_per_rank") or 0) or None


def sent_a_step(row: dict) -> float | None:
    """The same of one step, whatever the length of the run: a round's outer steps are divided by its H."""
    inner = _inner_step(row)
    if inner is None or (row.get("outer_bytes_per_round") is None and _has_outer(row)):
        return None
    return inner + (row.get("outer_bytes_per_round") or 0) / (row.get("outer_sync_every") or 1) or None


def _inner_step(row: dict) -> float | None:
    name = "comm_bytes_inner_step" if _has_outer(row) else "comm_bytes_per_step"
    return row[name] / row["world_size"] if row.get(name) is not None and row.get("world_size") else None


def _has_outer(row: dict) -> bool:
    return (row.get("outer_algorithm") or "none") != "none"


def _figure(source: Source, name: str, title: str, some: list[Group], folded: int) -> Drawn:
    column = loss_column([row for group in some for row in group.rows])
    figure, (left, right) = new_figure(9.0, 4.2, 2)
    kinds = list(dict.fromkeys(map(_kind, some)))
    handles, losses, speeds = {}, [], []
    for group in some:
        one = look(kinds.index(_kind(group))) | {"linestyle": "none"}
        megabytes = float(np.median([sent(row) for row in group.rows])) / 1e6
        loss = positive(group.rows, column)
        rate = median(group.rates, source.level)
        for axes, estimate, found in ((left, loss and median(loss, source.level), losses), (right, rate, speeds)):
            if estimate:
                found.append(estimate)
                handles[_kind(group)] = axes.plot(megabytes, estimate.value, **one, zorder=3)[0]
                with_intervals(axes, [megabytes], [estimate], one["color"])
                if group["outer_sync_every"]:
                    above = 5 if kinds.index(_kind(group)) % 2 else -10
                    at = (megabytes, estimate.value)
                    axes.annotate(f"H {group['outer_sync_every']}", at, (5, above), textcoords="offset points", size=7)
    left.set(ylabel=("held-out" if column == "val_loss" else "training") + " loss, nats per token", title="Loss")
    right.set(ylabel="tokens/s", title="Throughput")
    for axes in (left, right):
        axes.set_xlabel("MB sent by one rank over the run")
        log_scale(axes, "x")
    log_scale(right, "y")
    legend(figure, list(handles.values()), list(map(label, handles)))
    bytes_of = {kind: [float(np.median([sent(r) for r in g.rows])) for g in some if _kind(g) == kind] for kind in kinds}
    plain = min(b for g in some if _algorithm(g) == "none" for b in bytes_of[_kind(g)])
    least = min(b for g in some if _algorithm(g) != "none" for b in bytes_of[_kind(g)])
    return Drawn(
        name,
        f"{title}: {work_name(some[0])}",
        figure,
        sum(len(group.rows) for group in some),
        "loss: "
        + (interval_text(losses, source.level, "order statistics") or "none")
        + ". Throughput: "
        + interval_text(speeds, source.level, "order statistics"),
        "bytes are the sizes of the messages that a rank hands to collectives, inner and outer; a ring all-reduce "
        "moves 2 (n-1)/n of that on the wire. Every run sees the same tokens in the same global batch",
        f"H: inner steps between two outer steps. The least that an outer loop sent is {plain / least:,.1f} times less "
        "than the least of data parallel."
        + (f" Not drawn: {count_of(folded, 'layout')} whose replicas are folded and send nothing." if folded else ""),
    )


def _algorithm(group: Group) -> str:
    return group["outer_algorithm"] or "none"


def _kind(group: Group) -> str:
    if _algorithm(group) == "none":
        return f"{group['layout'] or '?'}, {count_of(group.devices, 'rank')}"
    packed = group["outer_compression"] or "none"
    return (
        f"{_algorithm(group)} M {group['outer_replicas']}"
        + (f" {packed}" if packed != "none" else "")
        + f", {count_of(group.devices, 'rank')}"
    )
