"""The rules over columns against the scalar ones, and the space against the product of all settings, one by one."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from scalade.bench.shape import ModelShape
from scalade.parallelism.engines import refuse
from scalade.parallelism.layout import CP_METHODS, RECOMPUTE, SCHEDULES, Layout, canonical
from scalade.parallelism.plan import Question, space
from scalade.parallelism.plan.devices import no_layout
from scalade.parallelism.plan.rules import first_broken, rules_of
from scalade.parallelism.plan.space import VARIED, Refusals, blocks, configs_of, layout_of, splits
from scalade.parallelism.predict import load_machine
from scalade.parallelism.predict.configs import WORDS, from_cases

ENGINES = ("torch", "deepspeed", "megatron")
SHAPE = ModelShape(layers=6, heads=8, kv_heads=4, width=64, ffn=96, vocab=192, seq_len=32)


def question(devices=8, batch=8, shape=SHAPE, **more):
    return Question(shape, devices, load_machine("h100"), batch, **more)


def columns_of(layouts):
    rows = {name: [getattr(each, name) for each in layouts] for name in VARIED}
    coded = {name: [WORDS[name].index(v) for v in rows[name]] if name in WORDS else rows[name] for name in rows}
    return {name: np.array(values, int) for name, values in coded.items()}


def random_layout(engine, draw):
    """Settings that the engine has are more likely, so that many layouts break no rule, or one only."""

    def degree(chance=0.5):
        return draw.choice([2, 2, 3, 4]) if draw.random() < chance else 1

    torch, odd = engine == "torch", 0.85
    layout = Layout(
        engine=engine,
        dp_replicate=degree(0.3),
        dp_shard=degree(),
        tp=degree(0.4),
        pp=degree(0.4),
        cp=degree(0.4 if torch else 0.1),
        microbatches=draw.choice([1, 2, 4, 8]),
        recompute=draw.choice(RECOMPUTE),
        cp_method=draw.choice(CP_METHODS),
        sp=draw.random() < (0.2 if engine == "deepspeed" else 0.6),
        loss_parallel=draw.random() < (0.2 if engine == "deepspeed" else 0.9),
        zero_stage=3 if torch and draw.random() < odd else draw.choice([1, 1, 2, 3]),
        reshard_after_forward=draw.random() < (0.5 if torch else 0.9),
    )
    if draw.random() < odd and layout.pp == 1:
        return layout
    schedule = draw.choice(SCHEDULES if torch or draw.random() < 0.3 else ("1F1B", "1F1B", "Interleaved1F1B"))
    return replace(layout, pp_schedule=schedule, virtual_stages=draw.choice([1, 2, 2, 3]) if schedule != "1F1B" else 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_rules_over_columns_are_those_of_one_layout(engine):
    draw, seen = random.Random(7), [0, 0]
    for _ in range(60):
        shape = replace(
            SHAPE,
            layers=draw.choice([2, 6, 12]),
            kv_heads=draw.choice([1, 4, 8]),
            ffn=draw.choice([96, 100]),
            vocab=draw.choice([192, 193]),
            seq_len=draw.choice([32, 36]),
            tied=draw.random() < 0.3,
        )
        optimizer = draw.choice(["adamw", "adamw", "sgd", "muon", "deepspeed-cpu-adam"])
        asked = question(batch=draw.choice([8, 24, 48]), shape=shape, engine=engine, optimizer=optimizer)
        asked = replace(asked, precision=draw.choice(["fp32", "bf16"]))
        layouts = [random_layout(engine, draw) for _ in range(100)]
        broken = first_broken(columns_of(layouts), asked, rules_of(engine))
        for layout, place in zip(layouts, broken, strict=True):
            reason = refuse(layout, shape, asked.recipe)
            assert (place < 0) == (reason is None), (layout, reason, int(place), optimizer)
            seen[reason is None] += 1
    assert min(seen) > 30


def by_hand(asked):
    """Every combination of settings, each asked of the scalar function; those that mean the same once."""
    found = set()
    rows = splits(asked.devices)
    for i in range(len(rows["tp"])):
        degrees = {name: int(rows[name][i]) for name in rows}
        for micro, schedule, virtual, recompute, sp, loss, zero, reshard, method in product(
            (1, 2, 4),
            SCHEDULES if degrees["pp"] > 1 else ("1F1B",),
            range(1, 9) if degrees["pp"] > 1 else (1,),
            RECOMPUTE,
            (True, False) if degrees["tp"] > 1 else (True,),
            (asked.engine != "deepspeed",) if degrees["tp"] > 1 else (True,),
            (1, 2, 3) if degrees["dp_shard"] > 1 else (3,),
            (True, False) if asked.engine == "torch" else (True,),
            CP_METHODS if degrees["cp"] > 1 else ("allgather",),
        ):
            if degrees["pp"] * virtual > asked.shape.layers or asked.global_batch % micro:
                continue
            layout = Layout(
                asked.engine,
                **degrees,
                microbatches=micro,
                pp_schedule=schedule,
                virtual_stages=virtual,
                recompute=recompute,
                sp=sp,
                loss_parallel=loss,
                zero_stage=zero,
                reshard_after_forward=reshard,
                cp_method=method,
            )
            if refuse(layout, asked.shape, asked.recipe) is None:
                found.add(canonical(layout))
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("devices", [4])
def test_the_space_is_every_possible_layout_once(engine, devices):
    asked = question(devices, 4, shape=replace(SHAPE, layers=4), engine=engine)
    layouts = [layout_of(part, i, engine) for part in blocks(asked, Refusals()) for i in range(len(part["tp"]))]
    assert len(set(map(canonical, layouts))) == len(layouts)
    assert set(map(canonical, layouts)) == by_hand(asked)


def test_splits_are_all_products_of_five():
    for devices in (1, 6, 16, 30):
        rows = np.column_stack(list(splits(devices).values()))
        many = [d for d in range(1, devices + 1) if devices % d == 0]
        expected = {five for five in product(many, repeat=5) if np.prod(five) == devices}
        assert set(map(tuple, rows.tolist())) == expected and len(rows) == len(expected)


def test_small_blocks_hold_the_same_layouts(monkeypatch):
    asked, sizes = question(), []

    def all_rows():
        parts = list(blocks(asked, Refusals()))
        sizes.append(max(len(part["tp"]) for part in parts))
        return sorted(tuple(row) for part in parts for row in np.column_stack([part[n] for n in VARIED]).tolist())

    whole = all_rows()
    monkeypatch.setattr(space, "BLOCK", 100)
    assert all_rows() == whole
    assert sizes[1] <= 200 < sizes[0]


def test_refusals_are_counted_with_a_reason_of_the_scalar_rules():
    asked, refusals = question(16, 4), Refusals()
    possible = sum(len(part["tp"]) for part in blocks(asked, refusals))
    reasons = dict(refusals.counts())
    assert possible > 0 and sum(reasons.values()) == refusals.total
    assert any("global_batch 4 is not a multiple" in reason for reason in reasons)
    assert any("kv_heads 4 is not a multiple of tp" in reason for reason in reasons)


def test_columns_become_the_configurations_of_their_layouts():
    asked = question()
    part = next(iter(blocks(asked, Refusals())))
    mine = configs_of(part, asked)
    rows = range(0, len(part["tp"]), 7)
    from scalade.parallelism.diloco.config import Outer

    cases = [(asked.shape, asked.recipe, layout_of(part, i, "torch"), Outer()) for i in rows]
    theirs = from_cases(cases)
    for name in ("ranks", "tokens", "params_total", "stages", "dp", "recompute", "pp_schedule", "sp", "precision"):
        ours = np.broadcast_to(getattr(mine, name), len(mine))[list(rows)]
        assert np.array_equal(ours, np.broadcast_to(getattr(theirs, name), len(theirs))), name


def test_where_nothing_fills_the_devices_near_counts_are_named():
    asked, refusals = question(97), Refusals()
    assert list(blocks(asked, refusals)) == []
    line = no_layout(asked, refusals)
    assert "\n" not in line and "no layout of torch fills 97 devices" in line
    counts = [int(word.replace(",", "")) for word in line.split("; ")[-1].split(" would work")[0].split(" and ")]
    assert all(list(blocks(replace(asked, devices=count), Refusals())) for count in counts)
    assert counts == [96, 128]
