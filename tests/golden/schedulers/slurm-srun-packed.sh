#!/bin/bash
# Scalade: study demo, 2 cases on 2 nodes with 4 ranks each
# By hand: from the folder of this file, sbatch scalade-demo-c0ffee-0.sh
#SBATCH --job-name=scalade-demo-c0ffee-0
#SBATCH --account=proj42
#SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
#SBATCH --time=01:30:00
#SBATCH --output=scalade-demo-c0ffee-0.%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --signal=B:USR1@60

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
# 60 s before the time limit: the ranks are asked to write a checkpoint and to stop
export SCALADE_STOP_FILE=/data/results/submissions/c0ffee/scalade-demo-c0ffee-0.$SLURM_JOB_ID.stop
rm -f -- "$SCALADE_STOP_FILE"
told=no
trap 'told=yes; touch -- "$SCALADE_STOP_FILE"' USR1
/opt/venv/bin/python -m scalade pack /data/results/submissions/c0ffee/scalade-demo-c0ffee-0.json &
step=$!
status=0
wait "$step" || status=$?
if [ "$told" = yes ]; then
    status=0
    wait "$step" || status=$?
fi

# What is left goes on in the next allocation
if { [ "$told" = yes ] && [ "$status" -ne 0 ]; } || [ "$status" -eq 75 ]; then
    [ "${SLURM_RESTART_COUNT:-0}" -ge 20 ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
