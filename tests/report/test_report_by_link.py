"""One study on several links: the table and the figure, from rows with known times."""

import pytest

from scalade.results.report import by_link
from scalade.results.store.store import RunStore


def write(folder, rate, dp_s, diloco_s, runs=2):
    """Data parallel sends 8 MB a step and rank; DiLoCo 8 MB every 4 steps, waited for 0.1 s each."""
    store = RunStore(folder)
    link = {"link_rate_measured_bits_per_s": rate, "link_rtt_measured_s": 0.02, "lab": "x"}
    common = {"status": "ok", "world_size": 2, "steps": 8, "tokens_per_step": 100} | link
    for repeat in range(runs):
        each = {"repeat": repeat} | common
        store.write_run(
            each
            | {
                "run_id": f"{1:016x}-r{repeat}",
                "case_id": f"{1:016x}",
                "layout": "dp2",
                "step_time_s": dp_s + repeat / 1e3,
                "exposed_comm_time_s": 0.3,
                "comm_bytes_per_step": 16_000_000,
            }
        )
        steps = {"step": list(range(8)), "warmup": [True] * 4 + [False] * 4, "outer_exposed_s": [None] * 7 + [0.1]}
        store.write_run(
            each
            | {
                "run_id": f"{2:016x}-r{repeat}",
                "case_id": f"{2:016x}",
                "layout": "diloco.M2.H4",
                "step_time_s": diloco_s,
                "outer_algorithm": "diloco",
                "outer_sync_every": 4,
                "comm_bytes_inner_step": 0,
                "outer_bytes_per_round": 8_000_000,
                "outer_round_exposed_s": 0.1,
            },
            steps,
        )
    return folder


def test_each_link_has_its_rows_against_its_own_data_parallel(tmp_path, capsys):
    fast = write(tmp_path / "fast", 1e9, 0.2, 0.2)
    slow = write(tmp_path / "slow", 1e8, 0.8, 0.2)
    rows = by_link.by_link([fast, slow])
    assert [(row.link, row.layout) for row in rows] == [
        ("1,000 Mbit/s, 20 ms", "dp2"),
        ("1,000 Mbit/s, 20 ms", "diloco.M2.H4"),
        ("100 Mbit/s, 20 ms", "dp2"),
        ("100 Mbit/s, 20 ms", "diloco.M2.H4"),
    ]
    dp, diloco = rows[2:]
    assert dp.sent_bytes == 8e6 and diloco.sent_bytes == 2e6
    assert dp.exposed_s == pytest.approx(0.3) and diloco.exposed_s == pytest.approx(0.1 / 4)
    assert dp.ratio == 1 and diloco.ratio == pytest.approx(0.8005 / 0.2)
    out = tmp_path / "figure.svg"
    assert by_link.main([str(out), str(fast), str(slow)]) == 0
    assert out.read_text().startswith("<?xml")
    told = capsys.readouterr().out
    assert "| 100 Mbit/s, 20 ms | diloco.M2.H4 | 2,000 | 160.0 | 25.0 | 200 (200 to 200) | 4.00 | 2 |" in told


def test_nothing_to_read_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no finished runs with a step time in"):
        by_link.by_link([RunStore(tmp_path / "r").folder])
