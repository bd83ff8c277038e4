"""The outer algorithms in one process (folded): against a float64 reference, and each in its limits."""

import checkpoints
import pytest
import torch
from diloco_tiny import BATCH, LAYERS, batch, build, initial_parameters, loss_of, recipe_of, run

from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.diloco.plan import state_bytes

STEPS = 12


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def folded(algorithm="diloco", replicas=2, recipe=None, **settings):
    settings = dict(sync_every=3, placement="folded") | settings
    recipe = recipe or recipe_of()
    engine = build(Outer(algorithm, replicas, **settings), recipe)
    return run(engine, recipe) | {"parameters": {p.name: p.data.clone() for p in engine.local_parameters()}}


def reference(algorithm, replicas, every, lr, mu, nesterov=True, tau=0, alpha=0.0, fragment=None):
    """Losses in float64 by the papers' formulas, parameter by parameter, no buffers shared with the package."""
    recipe, theta = recipe_of(), initial_parameters(torch.float64)
    count = 1 if fragment is None else max(fragment.values()) + 1
    momentum = {k: torch.zeros_like(v) for k, v in theta.items()}
    models = [{k: v.clone().requires_grad_() for k, v in theta.items()} for _ in range(replicas)]
    inner = [torch.optim.AdamW(m.values(), lr=0.0, weight_decay=recipe.weight_decay) for m in models]
    under_way, losses = {}, []
    for step in range(1, recipe.steps + 1):
        rows, share = batch(step - 1), BATCH // replicas
        total = 0.0
        for m, model in enumerate(models):
            loss = loss_of(model, rows[m * share : (m + 1) * share])
            inner[m].zero_grad()
            loss.backward()
            inner[m].param_groups[0]["lr"] = recipe.lr_at(step - 1)
            inner[m].step()
            total += loss.item() / replicas
        losses.append(total)
        with torch.no_grad():
            for name in theta:
                offset = (0 if fragment is None else fragment[name]) * every // count
                if (step - offset) % every == 0:
                    delta = sum(theta[name] - model[name] for model in models) / replicas
                    under_way[name] = (step + tau, delta)
                if under_way.get(name, (None,))[0] == step:
                    delta = under_way.pop(name)[1]
                    if algorithm == "localsgd":
                        theta[name] = theta[name] - delta
                    else:
                        momentum[name] = mu * momentum[name] + delta
                        theta[name] = theta[name] - lr * (delta + mu * momentum[name] if nesterov else momentum[name])
                    for model in models:
                        model[name].copy_(alpha * model[name] + (1 - alpha) * theta[name])
    return losses


FRAGMENTS = {"embedding": 0, "gain": 1, "head": 1} | {f"blocks.{i}": i % 2 for i in range(LAYERS)}


@pytest.mark.parametrize(
    "settings, expected",
    [
        (dict(algorithm="diloco"), dict(lr=0.6, mu=0.9)),
        (dict(algorithm="diloco", replicas=4, lr=0.3, momentum=0.5), dict(lr=0.3, mu=0.5)),
        (dict(algorithm="diloco", nesterov=False), dict(lr=0.6, mu=0.9, nesterov=False)),
        (dict(algorithm="diloco", replicas=1), dict(lr=0.4, mu=0.9)),
        (dict(algorithm="localsgd"), dict(lr=1, mu=0)),
        (dict(algorithm="streaming", fragment_layers=2), dict(lr=0.4, mu=0.9, tau=1, alpha=0.5, fragment=FRAGMENTS)),
        (
            dict(algorithm="streaming", fragment_layers=2, overlap_steps=2, mixing_alpha=0.25, sync_every=4),
            dict(lr=0.4, mu=0.9, tau=2, alpha=0.25, fragment=FRAGMENTS, every=4),
        ),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items() if k != "fragment"),
)
def test_follows_the_float64_reference(settings, expected):
    got = folded(**settings)["losses"]
    want = reference(settings["algorithm"], settings.get("replicas", 2), **({"every": 3} | expected))
    assert got == pytest.approx(want, rel=2e-5)
    assert want[-1] < 0.9 * want[0]  # it learns, so a wrong sign could not hide


def test_one_replica_synchronised_every_step_with_unit_lr_is_the_plain_run():
    plain = run(build(Outer(), recipe_of()), recipe_of())
    same = folded(replicas=1, sync_every=1, lr=1.0, momentum=0.0)
    assert same["losses"] == pytest.approx(plain["losses"], rel=1e-6)
    assert same["evals"]["outer"] == pytest.approx(plain["evals"]["model"], rel=1e-6)


def test_localsgd_every_step_with_sgd_is_data_parallel():
    sgd = recipe_of(optimizer="sgd", lr=0.3)
    plain = run(build(Outer(), sgd), sgd)
    assert folded("localsgd", 4, sgd, sync_every=1)["losses"] == pytest.approx(plain["losses"], rel=1e-5)


def test_streaming_limits():
    diloco = folded(lr=0.4)
    one_fragment = dict(fragment_layers=LAYERS, overlap_steps=0)
    assert folded("streaming", mixing_alpha=0.0, **one_fragment)["losses"] == pytest.approx(diloco["losses"], rel=1e-6)
    alone = folded("streaming", mixing_alpha=1.0, lr=0.9, fragment_layers=2, overlap_steps=2)
    never = folded("localsgd", sync_every=1000)
    assert alone["losses"] == pytest.approx(never["losses"], rel=1e-6)  # alpha 1: nobody is told


def test_alpha_zero_forgets_what_was_learnt_while_the_fragment_travelled():
    recipe = recipe_of(steps=5)
    engine = build(
        Outer("streaming", 2, "folded", 4, fragment_layers=LAYERS, overlap_steps=1, mixing_alpha=0.0), recipe
    )
    run(engine, recipe)
    for replica in range(2):
        for inner, outer in engine.algorithm.outer_parameters(replica):
            assert torch.equal(inner, outer)


def test_strided_and_sequential_fragments_differ_and_cover_everything():
    losses = {}
    for order in ("strided", "sequential"):
        outer = Outer("streaming", 2, "folded", 6, fragment_layers=2, fragment_order=order)
        engine = build(outer, recipe_of())
        names = [
            [p.name for p in engine.local_parameters()][i] for b in engine.algorithm.buckets() for i in b.plan.indices
        ]
        assert sorted(names) == sorted(initial_parameters())
        losses[order] = run(engine, recipe_of())["losses"]
    assert losses["strided"] != losses["sequential"]


def test_eager_with_one_replica_is_diloco():
    assert folded("eager", 1)["losses"] == pytest.approx(folded("diloco", 1)["losses"], rel=1e-6)


def test_delayed_and_eager_follow_their_equations():
    """One parameter's worth of arithmetic per replica in float64, with inner steps taken from the run itself."""
    for algorithm in ("delayed", "eager"):
        recipe = recipe_of(optimizer="sgd", lr=0.1, steps=9)
        outer = Outer(algorithm, 2, "folded", 3, lr=0.5, momentum=0.9)
        engine = build(outer, recipe)
        start = {k: v.double() for k, v in initial_parameters().items()}
        theta, momentum = [dict(start) for _ in range(2)], [dict.fromkeys(start, 0.0) for _ in range(2)]
        last, mean = [dict.fromkeys(start, 0.0) for _ in range(2)], None
        models = [{k: v.clone().requires_grad_() for k, v in start.items()} for _ in range(2)]
        losses = []
        for step in range(1, 10):
            total = 0.0
            for m, model in enumerate(models):
                loss = loss_of(model, batch(step - 1)[m * BATCH // 2 : (m + 1) * BATCH // 2])
                grads = torch.autograd.grad(loss, list(model.values()))
                lr = recipe.lr_at(step - 1)
                with torch.no_grad():
                    for p, g in zip(model.values(), grads, strict=True):
                        p -= lr * (g + recipe.weight_decay * p)
                total += loss.item() / 2
            losses.append(total)
            if step % 3 == 0:
                deltas = [{k: (theta[m][k] - models[m][k]).detach() for k in start} for m in range(2)]
                for m in range(2):
                    for k in start:
                        arrived = 0.0 if mean is None else mean[k]
                        g = arrived if algorithm == "delayed" else arrived + (deltas[m][k] - last[m][k]) / 2
                        momentum[m][k] = 0.9 * momentum[m][k] + g
                        theta[m][k] = theta[m][k] - 0.5 * (g + 0.9 * momentum[m][k])
                        models[m][k].data.copy_(theta[m][k])
                mean, last = {k: (deltas[0][k] + deltas[1][k]) / 2 for k in start}, deltas
        assert run(engine, recipe)["losses"] == pytest.approx(losses, rel=2e-5), algorithm


@pytest.mark.parametrize("algorithm", ["diloco", "streaming", "eager"])
def test_bucketed_is_per_parameter(algorithm):
    results = [folded(algorithm, bucket_mb=mb)["losses"] for mb in (0, 0.0005, 32)]
    assert results[0] == pytest.approx(results[2], rel=1e-6)
    assert results[1] == pytest.approx(results[2], rel=1e-6)


def test_offload_changes_nothing():
    assert folded(offload=True)["losses"] == folded()["losses"]


def test_drift_and_cosine_are_those_of_the_replicas():
    recipe = recipe_of(steps=3)
    extras = folded(replicas=4, recipe=recipe)["extras"][-1]
    apart = build(Outer("diloco", 4, "folded", 100), recipe)
    run(apart, recipe)
    start = torch.cat([v.flatten() for v in initial_parameters().values()]).double()
    flat = [torch.cat([p.data.flatten() for p in e.local_parameters()]).double() for e in apart.engines]
    mean = sum(flat) / 4
    drift = (sum((f - mean).square().sum() for f in flat) / 4).sqrt()
    deltas = [start - f for f in flat]
    pairs = [(a, b) for i, a in enumerate(deltas) for j, b in enumerate(deltas) if i != j]
    cosine = sum(a @ b for a, b in pairs) / (3 * sum(d @ d for d in deltas))
    assert extras["replica_drift"] == pytest.approx(float(drift), rel=1e-4)
    assert extras["pseudograd_cosine"] == pytest.approx(float(cosine), rel=1e-4)


def test_evaluation_is_on_the_outer_parameters_and_leaves_the_inner_ones():
    recipe = recipe_of(steps=5)  # in the middle of H
    engine = build(Outer("diloco", 2, "folded", 3), recipe)
    result = run(engine, recipe)
    before = [p.data.clone() for p in engine.local_parameters()]
    outer = {
        name: copy for name, (_, copy) in zip(initial_parameters(), engine.algorithm.outer_parameters(0), strict=True)
    }
    assert result["evals"]["outer"] == pytest.approx(float(loss_of(outer, batch(10_000))), rel=1e-6)
    assert result["evals"]["inner"] != pytest.approx(result["evals"]["outer"], rel=1e-4)
    engine.evaluations()["outer"](batch(10_000), torch.ones(BATCH, dtype=torch.bool))
    assert all(torch.equal(a, p.data) for a, p in zip(before, engine.local_parameters(), strict=True))


@pytest.mark.parametrize("compression", ["bf16", "int8", "int4", "fp4"])
def test_compressed_runs_stay_near_the_exact_one(compression):
    exact = folded(lr=0.4)["losses"]
    got = folded(lr=0.4, compression=compression, **({} if compression == "bf16" else {"block_size": 16}))["losses"]
    assert got != exact
    assert got == pytest.approx(exact, rel=0.1 if compression in ("int4", "fp4") else 0.01)


def test_error_feedback_conserves_the_sum():
    """What was sent plus what is kept is what was to be sent, over all rounds."""
    outer = Outer("diloco", 1, "folded", 1, compression="topk", block_size=8, density=0.25, error_decay=1.0, lr=0.0)
    engine = build(outer, recipe_of())
    bucket = next(engine.algorithm.buckets())
    wanted, sent = torch.zeros(bucket.plan.numel), torch.zeros(bucket.plan.numel)
    for _ in range(20):
        delta = torch.randn(bucket.plan.numel)
        wanted += delta
        bucket.channel.send(lambda _, into, delta=delta: into.copy_(delta))
        sent += bucket.channel.receive()[0].total
    assert bucket.channel.residuals[0].abs().sum() > 0
    torch.testing.assert_close(sent + bucket.channel.residuals[0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bf16", "int8", "int4", "fp4"])
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_two_shots_round_the_sum_by_no_more_than_the_codec_may(kind, decay):
    """|received - sum| <= the messages' bounds and the sum's; with error feedback both residuals make up for it all."""
    width, settings = (1, {}) if kind == "bf16" else (8, dict(block_size=8))
    outer = Outer("diloco", 3, "folded", 1, compression=kind, exchange="twoshot", error_decay=decay, **settings)
    bucket = next(build(outer, recipe_of(global_batch=15)).algorithm.buckets())
    assert bucket.plan.numel % (3 * width) == 0
    wanted, received = torch.zeros(bucket.plan.numel), torch.zeros(bucket.plan.numel)
    for _ in range(4):
        deltas = torch.randn(3, bucket.plan.numel)
        bucket.channel.send(lambda replica, into, deltas=deltas: into.copy_(deltas[replica]))
        got, _ = bucket.channel.receive()
        wanted += deltas.sum(0)
        received += got.total
        if not decay:
            blocks = [x.view(-1, width) for x in (*deltas, deltas.sum(0))]
            top = [block.abs().amax(1, keepdim=True) for block in blocks]
            share = {"int8": 1 / 254, "int4": 1 / 14, "fp4": 1 / 3, "bf16": 2.0**-8}[kind]
            once = sum(share * t for t in top[:3])  # of what the sum is made of
            bound = once + share * (top[3] + once)
            error = (got.total - deltas.sum(0)).view(-1, width).abs()
            assert (error <= bound * 1.001).all() and error.max() > 0
            assert float(got.squares) == pytest.approx(float(deltas.square().sum()), rel=0.2)
    if decay:
        kept = sum(bucket.channel.residuals) + torch.cat(bucket.channel.owner_residuals)
        torch.testing.assert_close(received + kept, wanted, rtol=1e-4, atol=1e-4)


RESUMED = [
    dict(),
    dict(algorithm="localsgd", compression="int4", block_size=16),
    dict(compression="topk", block_size=16, density=0.25),
    dict(algorithm="delayed"),
    dict(algorithm="eager"),
    dict(algorithm="streaming", sync_every=6, fragment_layers=2, overlap_steps=4),
    dict(algorithm="eager", compression="int4", block_size=16, exchange="twoshot", error_decay=0.9),
]


@pytest.mark.parametrize("settings", RESUMED, ids=str)
def test_resumed_in_the_middle_is_bitwise(settings, tmp_path):
    for at in (4, 7):  # in the middle of H; streaming: a fragment on its way
        outer = Outer(**(dict(algorithm="diloco", replicas=2, placement="folded", sync_every=3) | settings))
        whole = run(build(outer, recipe_of()), recipe_of(), save_at=at, folder=tmp_path / str(at))
        resumed = build(outer, recipe_of())
        checkpoints.load(resumed, tmp_path / str(at))
        rest = run(resumed, recipe_of(), first=at)
        assert rest["losses"] == whole["losses"][at:]
        assert rest["evals"] == whole["evals"]


def test_divergence_is_refused_by_the_codec_with_a_clear_error():
    engine = build(Outer("diloco", 2, "folded", 1, compression="int4"), recipe_of())
    next(engine.local_parameters()).data[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="infinity or NaN"):
        run(engine, recipe_of(steps=1))


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(momentum=0.0),
        dict(algorithm="localsgd"),
        dict(algorithm="eager"),
        dict(algorithm="streaming"),
        dict(compression="int4", block_size=8),
        dict(compression="topk", block_size=8, density=0.25),
        dict(algorithm="eager", compression="int8", block_size=8, error_decay=0.9),
    ],
    ids=str,
)
def test_memory_is_that_predicted(settings):
    outer = Outer(**(dict(algorithm="diloco", replicas=3, placement="folded", sync_every=3) | settings))
    recipe = recipe_of(global_batch=15, steps=6)
    engine = build(outer, recipe)
    run(engine, recipe)
    held: dict[int, int] = {}  # by storage: views count once
    seen = [engine.algorithm]
    while seen:
        thing = seen.pop()
        if torch.is_tensor(thing):
            if thing.untyped_storage().data_ptr() not in {p.data_ptr() for p in inner_storages(engine)}:
                held[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, dict):
            seen += thing.values()
        elif isinstance(thing, list | tuple):
            seen += thing
        elif type(thing).__module__.startswith("scalade"):
            seen += [v for k, v in vars(thing).items() if k != "param_groups"]
    numel = sum(p.data.numel() for p in engine.local_parameters())
    assert sum(held.values()) == pytest.approx(state_bytes(outer, numel), rel=0.02)


def inner_storages(engine):
    return [p.data.untyped_storage() for each in engine.engines for p in each.local_parameters()]
