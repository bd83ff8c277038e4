#!/bin/bash
# Scalade: study demo, 2 cases on 2 nodes with 4 ranks each
# By hand: from the folder of this file, qsub scalade-demo-c0ffee-0.sh
#PBS -N scalade-demo-c0ffee-0
#PBS -J 0-1
#PBS -A proj42
#PBS -q gpu
#PBS -l select=2:ncpus=32:mpiprocs=4:ngpus=4
#PBS -l place=scatter:excl
#PBS -l walltime=01:30:00
#PBS -j oe
#PBS -k doe
#PBS -r y

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
case=${cases[PBS_ARRAY_INDEX]}

# Where torchrun's agents meet: the first node, and a port of this job's own
head=$(head -n 1 "$PBS_NODEFILE")
number=${PBS_JOBID%%.*}
number=$((10#${number//[!0-9]/}))  # of 12[3].server: 123
port=$((10000 + number % 20000))
while (: <> "/dev/tcp/$head/$port") 2> /dev/null; do port=$((10000 + RANDOM % 20000)); done  # it is taken

mpirun -n 2 -ppn 1 --verbose apptainer exec --nv '/images/scalade 1.sif' /opt/venv/bin/python -m scalade.launch.torchrun \
    --max-restarts 0 --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-id "scalade-$number" \
    --rdzv-endpoint "$head":"$port" -m scalade worker /data/results/submissions/c0ffee/demo.toml --results /data/results \
    --case "$case" --quiet
