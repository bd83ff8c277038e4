#!/bin/bash
# Scalade: study demo, 2 cases on 2 nodes with 4 ranks each
# By hand: from the folder of this file, flux batch --env=SCALADE_TASK=0 scalade-demo-c0ffee-0.sh
#flux: --job-name=scalade-demo-c0ffee-0
#flux: --nodes=2
#flux: --nslots=8
#flux: --cores-per-slot=8
#flux: --gpus-per-slot=1
#flux: --exclusive
#flux: --queue=gpu
#flux: --setattr=system.bank=proj42
#flux: --time-limit=90m
#flux: --output=scalade-demo-c0ffee-0.{{id}}.log

set -euo pipefail

# Relative paths in the study are meant from here
cd -- '/data/my study'

# Modules; their scripts use variables that are not set
set +u
module load cuda/12.4
module load nccl
set -u

# The site's own commands
source "$HOME/site.sh"

# Environment
export HF_HOME='/scratch/hf cache'

# Fabric
export NCCL_SOCKET_IFNAME=hsn0
export NCCL_DEBUG=WARN

# Of the supervisors; each rank's threads are set by scalade
export OMP_NUM_THREADS=1

# The case of this task
cases=(
    0123456789abcdef  # tiny-300k dp8
    fedcba9876543210  # tiny-300k fsdp8
)
case=${cases[SCALADE_TASK]}

# Where torchrun's agents meet: the first node, and a port of this job's own
head=$(flux hostlist --limit=1 local)
number=$(flux job id --to=dec "$(flux getattr jobid)")
port=$((10000 + number % 20000))
while (: <> "/dev/tcp/$head/$port") 2> /dev/null; do port=$((10000 + RANDOM % 20000)); done  # it is taken

flux run --nodes=2 --ntasks=2 --exclusive --verbose apptainer exec --nv '/images/scalade 1.sif' \
    /opt/venv/bin/python -m scalade.launch.torchrun --max-restarts 0 --nnodes 2 --nproc-per-node 4 \
    --rdzv-backend c10d --rdzv-id "scalade-$number" --rdzv-endpoint "$head":"$port" -m scalade worker \
    /data/results/submissions/c0ffee/demo.toml --results /data/results --case "$case" --quiet
