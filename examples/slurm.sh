#!/bin/bash
# SPT, then RPT, on several machines of a SLURM cluster, for as long as it takes:
#   lares config slurm.sh > slurm.sh       # then edit the lines marked <-
#   sbatch slurm.sh --run beauty --data.dataset prepared/beauty
# What stands behind slurm.sh goes to both stages. Submit from a folder that all machines see: runs/ and prepared/ lie in it.
# When its time is up the job saves, puts itself back into the queue and goes on where it stopped, bit for bit.

#SBATCH --job-name=lares
#SBATCH --nodes=2                   # <- machines
#SBATCH --ntasks-per-node=4         # <- a process a GPU: keep equal to the GPUs of a machine
#SBATCH --gpus-per-node=4           # <- GPUs of a machine
#SBATCH --cpus-per-task=4           # <- batches are cut in the process itself: few cores do
#SBATCH --time=24:00:00             # <- of one stretch; a run may take any number of them
#SBATCH --signal=TERM@180           # SIGTERM to all processes 180 s (SLURM's clock: give or take 60) before the end: time to end the
                                    #   update, or validation, at work and save. Not `B:TERM`, which would go to this shell alone
#SBATCH --requeue                   # a job that is pre-empted, or loses a machine, goes back into the queue
#SBATCH --open-mode=append          # a requeued job writes on in the same file
#SBATCH --output=lares-%j.log

# (partition, account and modules of your cluster come here, and the environment that `lares` is installed in)
# source .venv/bin/activate

stage() {
    # One stage; the same line whether it is new, interrupted or finished (which ends at once).
    # --wait: when one process has died, the others, which wait for it, are ended 300 s later.
    srun --wait=300 lares fit --config "$1" --config cluster.yaml --ckpt_path auto \
        --trainer.num_nodes "$SLURM_JOB_NUM_NODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" "${@:2}"
    status=$?
    if [ "$status" -eq 0 ]; then
        return
    fi
    # 143: ended by SIGTERM, with a checkpoint. While the job still counts as running, that was its time running out, and it asks
    # for another stretch. (Cancelled by hand it counts as cancelled, and stays so. Pre-empted, SLURM requeues it by itself.)
    if [ "$status" -eq 143 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ] \
        && [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = RUNNING ]; then
        echo "slurm.sh: $1 was interrupted and saved; job $SLURM_JOB_ID goes back into the queue"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$status"
}

stage spt.yaml "$@"
stage rpt.yaml "$@"

# Lightning's own requeueing is not used and does not get in the way: it waits for SIGUSR1, which nobody sends here, and leaves the exit
# status alone. (It would write hpc_ckpt_*.ckpt files and resume from those.)
