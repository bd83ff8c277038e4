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

# Many cases, each on nodes of its own, the largest first
/opt/venv/bin/python -m scalade pack /data/results/submissions/c0ffee/scalade-demo-c0ffee-0.json
