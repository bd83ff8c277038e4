"""`scalade.record`: a trainer that is not ours reports its steps and its run into the table.

    with scalade.record("results/nanogpt", name="nanogpt", model_layers=12, global_batch=64, seed=0) as run:
        for ... : run.step(loss=loss, tokens=65536, step_time_s=seconds)
        run.evaluate(val_loss=3.1)

Columns are those of docs/reference/columns.md, as far as the trainer knows them; what decides the computation (model,
data, recipe, layout, outer loop) makes the case, and the next free repeat of it is this run. Rank 0 records, elsewhere
nothing happens. The row is marked `parity: not checked`: these losses were not compared with one process's. Imports no
torch.

Steps go to the run's scratch folder as they come; the row is written when the `with` ends, whole or not at all
(store.py). A process that is killed leaves its steps; the next recorder in that folder writes its row: failed.
"""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from .. import files
from ..out_of_memory import is_out_of_memory
from ..schema.column import Column
from ..schema.schema import SchemaError, checked, known_column
from ..store.attempts import RUN_ID
from ..store.run_folder import Claim
from ..store.store import RunStore
from .recorder_log import BY_US, FOUND, LOG, MEASURED, case_of, checked_settings, refuse_negative, row_of, written_of

RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "SLURM_NTASKS")
OF_STEP = ("run_id", "attempt", "step", "warmup")  # said by the recorder
OF_EVAL = ("run_id", "attempt")


def record(results: str | Path, *, name: str, rank: int | None = None, **known: object) -> Recorder:
    """Open a run in the results folder; use it as a context.

    name: of the study. rank: of this process; default: as torchrun, mpirun or srun say, else 0.
    known: columns of `runs`; world_size defaults to what the launcher says, engine to `external`,
    measure_warmup_steps (left out of the times) to 5.

    Raises
    ------
    ValueError: no such column (names the nearest), one that the recorder finds out itself, a value of another kind,
        degrees that do not multiply to world_size, or a folder that cannot be written
    """
    rank = _from_launcher(RANKS, 0) if rank is None else rank
    settings = {"engine": "external", "measure_warmup_steps": 5, "world_size": _from_launcher(SIZES, 1)} | known
    settings = checked_settings(settings | {"study": name})
    return Recorder(RunStore(results) if rank == 0 else None, settings)


class Recorder:
    """One run being recorded; see `record`. folder: of the written row, once it is."""

    def __init__(self, store: RunStore | None, settings: dict[str, object]):
        self.folder: Path | None = None
        self._store, self._file, self._step = store, None, 0
        if store is None:
            return
        recover(store)
        self._claim = _claimed(store, case_of(settings))
        self._file = files.stream(store.scratch(self._claim.run_id) / LOG)  # open as long as the run
        self._say({"settings": settings, "started_at": datetime.now(UTC).isoformat(), "monotonic": time.monotonic()})

    @property
    def run_id(self) -> str | None:
        """Null on ranks that do not record."""
        return None if self._store is None else self._claim.run_id

    def step(self, **measured: object) -> None:
        """One optimizer step: columns of `steps` (loss, step_time_s, lr, grad_norm, ...), and `tokens` of this step.

        step_time_s is that of the slowest rank: where ranks wait for each other in every step, any rank's will do.
        """
        row = _checked("steps", measured, (*OF_STEP, "tokens_seen"), more=("tokens",))
        self._say({"step": row | {"step": self._step}})
        self._step += 1

    def evaluate(self, **measured: object) -> None:
        """One evaluation of the weights as they are: columns of `evals` (val_loss, val_sequences, val_hash)."""
        self._say({"eval": {"step": self._step} | _checked("evals", measured, OF_EVAL)})

    def note(self, **measured: object) -> None:
        """Columns of `runs` that were measured over the run: peak_memory_bytes, energy_j, comm_bytes_per_step, ..."""
        for column in measured:
            if known_column("runs", column).name not in MEASURED:
                raise ValueError(f"note: {column} {f'is {BY_US}' if column in FOUND else SAY_FIRST}")
        self._say({"note": _checked("runs", measured, ())})

    def finish(self, status: str = "ok", reason: str | None = None) -> None:
        """Write the row; anything recorded later raises. `ok` becomes `diverged` where the loss is not finite."""
        if self._store is None or self._file is None or self._file.closed:
            return
        end = {"finished_at": datetime.now(UTC).isoformat(), "monotonic": time.monotonic()}
        self._say(end | {"status": status, "reason": reason})
        self._file.close()
        with self._claim:
            self.folder = _write(self._store, self._claim)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.finish()
        elif isinstance(error, KeyboardInterrupt):
            self.finish("cancelled", "cancelled by SIGINT")
        else:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.finish("oom" if is_out_of_memory(error) else "failed", text)

    def _say(self, line: dict) -> None:
        if self._file is not None:
            if self._file.closed:
                raise ValueError(f"run {self.run_id} is finished: open another")
            self._file.write(json.dumps(line).encode() + b"\n")


SAY_FIRST = "decides what is computed: give it to record()"


def recover(store: RunStore) -> list[str]:
    """Write the rows of runs whose recorder was killed; returns their run_ids."""
    run_ids = []
    for name in files.names(store.runs, store.folder):
        log = store.runs / name / "scratch" / LOG
        if RUN_ID.fullmatch(name) and files.is_file(log, store.folder) and (claim := store.claim(name)) is not None:
            with claim:
                if files.is_file(log, store.folder):
                    _write(store, claim)
                    run_ids.append(name)
    return run_ids


def _write(store: RunStore, claim: Claim) -> Path | None:
    written = written_of(store.scratch(claim.run_id) / LOG)
    folder = None
    if written is not None:
        row, steps, evals = row_of(written)
        case, _, repeat = claim.run_id.rpartition("-r")
        known = {"run_id": claim.run_id, "case_id": case, "repeat": int(repeat), "attempt": claim.attempt}
        folder = store.write_run(row | known, steps, evals)
    store.clean_scratch(claim.run_id)
    return folder


def _claimed(store: RunStore, case: str) -> Claim:
    for repeat in count():
        run_id = f"{case}-r{repeat}"
        if not store.attempts(run_id) and (claim := store.claim(run_id)) is not None:
            if not store.attempts(run_id):
                return claim
            claim.release()
    raise AssertionError


def _checked(table: str, values: dict[str, object], ours: tuple[str, ...], more: tuple[str, ...] = ()) -> dict:
    row = {}
    for name, value in values.items():
        if name in ours:
            raise ValueError(f"{name} is {BY_US}")
        column = Column(name, "int64", "", "") if name in more else known_column(table, name)
        try:
            row[name] = checked(column, value)
        except SchemaError as error:
            raise ValueError(str(error)) from None
        refuse_negative(name, row[name])
    return row


def _from_launcher(names: tuple[str, ...], default: int) -> int:
    """The number in the launcher's environment variable; torchrun first, for srun counts daemons under mpirun."""
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)
