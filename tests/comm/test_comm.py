"""What the probe counts, against closed forms: bytes and calls by collective and mesh dimension, of each rank.

Bytes are message sizes: the whole gathered tensor of an all-gather, the whole input of a reduce-scatter or
all-to-all, the tensor of an all-reduce or send.
"""

from pathlib import Path

import pytest
from worlds import run_world

from scalade.bench.shape import ModelShape

SHAPE = dict(layers=3, heads=4, kv_heads=2, width=32, ffn=48, vocab=64, seq_len=16)
RECIPE = dict(global_batch=8, steps=10)
BATCH = 8
S = ModelShape(**SHAPE)
L, N = S.layers, S.params_total
ROOT = N - L * S.params_layer  # embedding, final norm, head

HIDDEN = 4 * S.seq_len * S.width  # bytes of one sequence's residual stream
KV = 4 * 2 * S.seq_len * S.kv_heads * S.head_dim  # bytes of one sequence's keys and values
TOKENS = S.seq_len

FORMS: dict[str, dict] = {}


def form(name: str, size: int, layout: dict, expected: dict, **case) -> None:
    """expected: {"collective/dimension": (bytes, calls)} of each rank, or a list of one such by rank."""
    FORMS[name] = {"size": size, "case": {"layout": layout} | case, "expected": expected}


GRAD_NORM = (4, 1)  # one fp32: the squared norm of what each rank holds

# DDP (2006.15704): every gradient in fp32, once a step, in one bucket (all of it is below 1 MB); each rank then has
# the whole gradient, so the norm needs nothing.
form("ddp2", 2, {"dp_replicate": 2}, {"all_reduce/dp_replicate": (4 * N, 1)})
form("ddp2, accumulated", 2, {"dp_replicate": 2, "microbatches": 2}, {"all_reduce/dp_replicate": (4 * N, 1)})
form("ddp2, bf16", 2, {"dp_replicate": 2}, {"all_reduce/dp_replicate": (4 * N, 1)}, recipe={"precision": "bf16"})


def fsdp(gather_bytes: int, passes: int, dimension: str = "dp_shard", microbatches: int = 1) -> dict:
    """passes: times a block is gathered in one microbatch. The root's parameters are once; gradients once a step, in
    fp32."""
    gathered = gather_bytes * microbatches * (passes * L * S.params_layer + ROOT)
    return {
        f"all_gather/{dimension}": (gathered, microbatches * (passes * L + 1)),
        f"reduce_scatter/{dimension}": (4 * N, L + 1),
        f"all_reduce/{dimension}": GRAD_NORM,
    }


# ZeRO-3: parameters gathered for the forward and again for the backward pass; ZeRO-2 behaviour: once.
form("fsdp2", 2, {"dp_shard": 2}, fsdp(4, passes=2))
form("fsdp2, kept", 2, {"dp_shard": 2, "reshard_after_forward": False}, fsdp(4, passes=1))
form("fsdp2, bf16", 2, {"dp_shard": 2}, fsdp(2, passes=2), recipe={"precision": "bf16"})
form("fsdp2, accumulated", 2, {"dp_shard": 2, "microbatches": 2}, fsdp(4, passes=2, microbatches=2))

# Tensor parallel (1909.08053) with sequence parallel (2205.05198): attention and MLP of each layer enter by an
# all-gather and leave by a reduce-scatter of the residual stream, each with its conjugate in the backward pass; so do
# the head (enter) and the embedding (leave).
SEAMS = 4 * L + 2
# Loss-parallel: the maximum, then the sum of exponentials and the target's logit: three fp32 a token in two calls.
LOSS = (12 * BATCH * TOKENS, 2)
# Sequence parallel: each rank has its tokens' part of the norms' gradients.
NORMS = (4 * (2 * L + 1) * S.width, 1)


def added(*pairs: tuple[int, int]) -> tuple[int, int]:
    return tuple(map(sum, zip(*pairs, strict=True)))


form(
    "tp2",
    2,
    {"tp": 2},
    {
        "all_gather/tp": (SEAMS * BATCH * HIDDEN, SEAMS),
        "reduce_scatter/tp": (SEAMS * BATCH * HIDDEN, SEAMS),
        "all_reduce/tp": added(LOSS, NORMS, GRAD_NORM),
    },
)
# In bf16 the residual stream has two bytes; the loss, the norms and the gradients stay fp32.
form(
    "tp2, bf16",
    2,
    {"tp": 2},
    {
        "all_gather/tp": (SEAMS * BATCH * HIDDEN // 2, SEAMS),
        "reduce_scatter/tp": (SEAMS * BATCH * HIDDEN // 2, SEAMS),
        "all_reduce/tp": added(LOSS, NORMS, GRAD_NORM),
    },
    recipe={"precision": "bf16"},
)
# Without sequence parallel: an all-reduce wherever the stream leaves (forward) or entered (backward).
form("tp2, nosp", 2, {"tp": 2, "sp": False}, {"all_reduce/tp": added((SEAMS * BATCH * HIDDEN, SEAMS), LOSS, GRAD_NORM)})
# Without loss-parallel: the logits (fp32) are gathered in place of the three numbers a token.
form(
    "tp2, nolp",
    2,
    {"tp": 2, "loss_parallel": False},
    {
        "all_gather/tp": added((SEAMS * BATCH * HIDDEN, SEAMS), (4 * BATCH * TOKENS * S.vocab, 1)),
        "reduce_scatter/tp": (SEAMS * BATCH * HIDDEN, SEAMS),
        "all_reduce/tp": added(NORMS, GRAD_NORM),
    },
)

# Context parallel shards the parameters over its ranks, too. All-gather: keys and values of each layer are gathered
# in the forward pass, their gradients reduce-scattered in the backward pass.
CP = fsdp(4, passes=2, dimension="cp")
form(
    "cp2",
    2,
    {"cp": 2},
    CP
    | {
        "all_gather/cp": added(CP["all_gather/cp"], (L * BATCH * KV, L)),
        "reduce_scatter/cp": added(CP["reduce_scatter/cp"], (L * BATCH * KV, L)),
    },
)
# Ulysses: queries, keys, values and the context of this rank's half of the tokens; once in each pass.
form(
    "cp2, ulysses",
    2,
    {"cp": 2, "cp_method": "ulysses"},
    CP | {"all_to_all/cp": (2 * L * BATCH * (2 * HIDDEN + KV) // 2, 2 * 4 * L)},
)

# Pipeline: every microbatch's residual stream forward (rank 0 sends), its gradient back (rank 1 sends).
PP = {"send_recv/pp": (BATCH * HIDDEN, 4), "all_reduce/pp": GRAD_NORM}
for schedule in ("GPipe", "1F1B"):
    form(f"pp2, {schedule}", 2, {"pp": 2, "microbatches": 4, "pp_schedule": schedule}, PP)
# Four stages on two ranks: rank 0 sends twice forward and once back, rank 1 once forward and twice back.
form(
    "pp2, interleaved",
    2,
    {"pp": 2, "microbatches": 4, "pp_schedule": "Interleaved1F1B", "virtual_stages": 2},
    {"send_recv/pp": (3 * BATCH * HIDDEN, 12), "all_reduce/pp": GRAD_NORM},
    shape={"layers": 4},
)

# Replicas say nothing between outer steps.
form("two replicas", 2, {}, {}, outer={"algorithm": "diloco", "replicas": 2, "sync_every": 5})

# HSDP: in each shard as FSDP, then an all-reduce of the gradient's shard over the replicas.
HSDP = fsdp(4, passes=2)
form(
    "hsdp2x2",
    4,
    {"dp_replicate": 2, "dp_shard": 2},
    {
        "all_gather/dp_shard": HSDP["all_gather/dp_shard"],
        "reduce_scatter/dp_shard": HSDP["reduce_scatter/dp_shard"],
        "all_reduce/dp_replicate": (4 * N // 2, L + 1),
        "all_reduce/world": GRAD_NORM,
    },
)
# FSDP of tensor-parallel shards: half of each matrix and the whole norms; half of the batch through the seams.
HALVED = S.params_layer - 2 * S.width
LOCAL_LAYER, LOCAL_ROOT = HALVED // 2 + 2 * S.width, (ROOT - S.width) // 2 + S.width
form(
    "fsdp2.tp2",
    4,
    {"dp_shard": 2, "tp": 2},
    {
        "all_gather/dp_shard": (4 * (2 * L * LOCAL_LAYER + LOCAL_ROOT), 2 * L + 1),
        "reduce_scatter/dp_shard": (4 * (L * LOCAL_LAYER + LOCAL_ROOT), L + 1),
        "all_gather/tp": (SEAMS * BATCH // 2 * HIDDEN, SEAMS),
        "reduce_scatter/tp": (SEAMS * BATCH // 2 * HIDDEN, SEAMS),
        # The norms' gradients are summed as FSDP left them: half on each rank.
        "all_reduce/tp": added((LOSS[0] // 2, 2), (NORMS[0] // 2, 1)),
        "all_reduce/world": GRAD_NORM,
    },
)
# Two replicas of FSDP: what is inside a replica is dp_shard's, not `inside`'s.
REPLICA = fsdp(4, passes=2)
form(
    "two replicas of fsdp2", 4, {"dp_shard": 2}, REPLICA, outer={"algorithm": "diloco", "replicas": 2, "sync_every": 5}
)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    done: dict[int, dict] = {}

    def of(size: int) -> dict:
        if size not in done:
            done[size] = run_forms(size, tmp_path_factory.mktemp(f"comm{size}"))
        return done[size]

    return of


def run_forms(size: int, folder: Path) -> dict:
    cases = {}
    for name, each in FORMS.items():
        if each["size"] == size:
            own = each["case"]
            cases[name] = own | {"shape": SHAPE | own.get("shape", {}), "recipe": RECIPE | own.get("recipe", {})}
    return run_world("comm_ranks.py", size, cases, folder, timeout_s=150)


def marked(name: str):
    return pytest.param(name, marks=[pytest.mark.slow] if FORMS[name]["size"] > 2 else [], id=name)


@pytest.mark.parametrize("name", [marked(name) for name in FORMS])
def test_what_a_step_says_is_the_closed_form(name, worlds):
    ranks = worlds(FORMS[name]["size"])[name]
    expected = {key: list(value) for key, value in FORMS[name]["expected"].items()}
    for rank in ranks:
        assert rank["counts"] == expected
        assert (rank["seconds"] > 0) == bool(expected)


@pytest.mark.parametrize("name", [marked(name) for name in FORMS])
def test_totals_by_collective_and_by_dimension_are_the_same_sum(name, worlds):
    for rank in worlds(FORMS[name]["size"])[name]:
        for unit, place in (("bytes", 0), ("calls", 1)):
            whole = sum(value[place] for value in rank["counts"].values())
            for axis in ("collective", "dim"):
                assert sum(part[unit] for part in rank["totals"][axis].values()) == whole
