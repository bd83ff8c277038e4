"""The columns of the tables beside `runs`: many rows of each run, all but run_id and attempt in a file of their own."""

from __future__ import annotations

from .column import Column, count, flag, nbytes, real, seconds, string

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv", "broadcast")
PARTS = ("op", "background", "wait", "step")

_OF_RUN = (
    string("run_id", "row of `runs` this belongs to", required=True),
    count("attempt", "attempt of that run", required=True),
)

STEPS: dict[str, tuple[Column, ...]] = {
    "Step": (
        *_OF_RUN,
        count("step", "from 0", required=True),
        flag("warmup", "not timed: left out of the medians in `runs`"),
        count("tokens_seen", "tokens trained on when the step ended", "tokens"),
        real("loss", "mean over the global batch, before the update; NaN as measured", "nats/token", keeps_nan=True),
        real("grad_norm", "global L2 norm before clipping; NaN as measured", keeps_nan=True),
        real("lr", "learning rate of the step"),
        seconds("step_time_s", "slowest rank"),
        seconds("data_time_s", "waiting for data, slowest rank"),
        seconds("compute_time_s", "forward and backward, with the waits in them, mean over the ranks"),
        seconds("optimizer_time_s", "clipping and update, with the waits in them, mean over the ranks"),
        seconds("comm_time_s", "waited for collectives, slower ranks and transfers alike, mean over the ranks"),
        seconds("comm_time_min_s", "comm_time_s of the rank that waited least"),
        seconds("bubble_time_s", "waited for other pipeline stages, transfers included, mean over the ranks"),
        seconds("optimizer_wait_s", "the part of comm_time_s and bubble_time_s in optimizer_time_s"),
        nbytes("comm_bytes", "message sizes of the step's collectives, summed over the ranks"),
        flag("outer_step", "an outer step ended with this step"),
        seconds("outer_time_s", "time in the outer step, hidden or not, slowest rank"),
        seconds("outer_exposed_s", "the part of it that no computation hid, slowest rank"),
        nbytes("outer_bytes", "bytes of the messages rank 0 handed to the link"),
        count("replicas_present", "with a quorum: replicas whose pseudo-gradients are in the outer step"),
        real("replica_drift", "root mean square L2 distance of the replicas from their mean"),
        real("pseudograd_cosine", "mean cosine of two replicas' pseudo-gradients, weighted by their norms"),
    )
}

EVALS: dict[str, tuple[Column, ...]] = {
    "Evaluation": (
        *_OF_RUN,
        count("step", "optimizer steps taken before the evaluation", required=True),
        count("tokens_seen", "tokens trained on before the evaluation", "tokens"),
        string("kind", "weights evaluated: `model`; under DiLoCo also `outer` and `inner`", required=True),
        real("val_loss", "mean over val_sequences; NaN as measured", "nats/token", keeps_nan=True),
        count("val_sequences", "held-out sequences", "sequences"),
        string("val_hash", "hash of their tokens, as in `runs`"),
    )
}

COMM: dict[str, tuple[Column, ...]] = {
    "Collective": (
        *_OF_RUN,
        string("dim", "mesh dimension it ran along; `world`: all ranks", required=True),
        string("collective", "what was called", required=True, values=COLLECTIVES),
        nbytes(
            "message_bytes", "S, as nccl-tests counts: the whole gathered, scattered or exchanged array", required=True
        ),
        count("group_ranks", "n, ranks of one group"),
        count("groups", "groups along the dimension, all at it at once"),
        string("dtype", "of the elements"),
        flag("correct", "before and after the timed calls, every rank had the result it must have"),
        count("iterations", "timed calls; warm-up is left out"),
        seconds("time_s", "median over the timed calls, each that of its slowest rank; null where not correct"),
        seconds("time_min_s", "fastest timed call"),
        seconds("time_p95_s", "95th percentile over the timed calls"),
        seconds("first_s", "the first call: connections, allocation; not timed"),
        real("algbw_bytes_per_s", "algorithm bandwidth, S over time_s", "bytes/s"),
        real("busbw_bytes_per_s", "bus bandwidth: algbw times nccl-tests' factor of the collective", "bytes/s"),
    )
}

OPS: dict[str, tuple[Column, ...]] = {
    "Operation": (
        *_OF_RUN,
        count("rank", "whose time this is", required=True),
        string(
            "part",
            "`op`: an operation; `background`: one of a thread beside the step's own; `wait`: the step "
            "waited; `step`: the whole of it, profiler and all",
            required=True,
            values=PARTS,
        ),
        string("op", "as torch's profiler names it; `collectives`, `pipeline` or `step`", required=True),
        real("calls", "a step"),
        seconds("time_s", "of a step on the CPU, without the operations called inside; mean over the profiled steps"),
        seconds("device_time_s", "the same on the accelerator; null without one"),
    )
}
