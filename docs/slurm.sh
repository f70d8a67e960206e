#!/bin/bash
# A fine-tuning run on two nodes with four GPUs each, a process for each GPU:
#     sbatch docs/slurm.sh [further arguments of t2ifb.train]
# from the folder that `outputs/` is in, with the environment active and data and weights in place (t2ifb.prepare).
#SBATCH --job-name=t2ifb
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Five minutes before its time is over the run writes a checkpoint between two updates and ends with status 143.
#SBATCH --signal=TERM@300

run=outputs/sd15/refl/two_nodes
resume=null
if [ -e "$run/checkpoints/last.ckpt" ]; then resume=$run; fi

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # which srun does not take over by itself
srun python -m t2ifb.train +experiment=refl domain=sd15 algorithm.batch_size=8 trainer=ddp \
    trainer.num_nodes="$SLURM_JOB_NUM_NODES" hydra.run.dir="$run" resume="$resume" "$@"
status=$?
if [ $status = 143 ]; then exec scontrol requeue "$SLURM_JOB_ID"; fi
exit $status
