"""The columns of the four tables, in reading order. To add one, add a line here (docs/table.md says the rest).

Units are in the names: `_s` seconds, `_bytes` bytes, `_j` joules, `_flops` floating-point operations; a name
without one is a count, a ratio, a label or a loss in nats per token. Missing is null and never 0.
"""

from __future__ import annotations

from dataclasses import dataclass

TYPES = ("string", "int64", "float64", "bool")
STATUSES = ("ok", "failed", "oom", "timeout", "diverged", "skipped", "cancelled")


@dataclass(frozen=True)
class Column:
    """One column of a table.

    type: one of TYPES; a structure that no flat column holds is JSON text in a string column named `*_json`.
    unit: "" for labels and plain numbers.
    required: never null. A new column is never required: the rows that stand do not have it.
    values: all that a string column may hold; empty: anything.
    keeps_nan: NaN and infinity are kept as measured. Elsewhere they become null: a rate that is not a number was
        not measured.
    """

    name: str
    type: str
    unit: str
    doc: str
    required: bool = False
    values: tuple[str, ...] = ()
    keeps_nan: bool = False

    def __post_init__(self) -> None:
        assert self.type in TYPES, f"{self.name}: type {self.type!r}"
        assert self.type == "string" or not self.values
        assert self.type == "float64" or not self.keeps_nan


def _string(name: str, doc: str, **more) -> Column:
    return Column(name, "string", "", doc, **more)


def _count(name: str, doc: str, unit: str = "", **more) -> Column:
    return Column(name, "int64", unit, doc, **more)


def _float(name: str, doc: str, unit: str = "", **more) -> Column:
    return Column(name, "float64", unit, doc, **more)


def _bool(name: str, doc: str, **more) -> Column:
    return Column(name, "bool", "", doc, **more)


def _seconds(name: str, doc: str, **more) -> Column:
    return _float(name, doc, "s", **more)


def _bytes(name: str, doc: str, **more) -> Column:
    return _count(name, doc, "bytes", **more)


COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv", "broadcast")
MESH_DIMS = ("replicas", "pp", "dp_replicate", "dp_shard", "cp", "tp")  # outermost (slowest link) first

RUNS: dict[str, tuple[Column, ...]] = {
    "Identity": (
        _string("run_id", "`<case_id>-r<repeat>`; one row per run_id and attempt", required=True),
        _string("case_id", "hash of everything that decides what is computed", required=True),
        _string("study", "name of the study the run was started from"),
        _count("repeat", "which execution of the case this is, from 0", required=True),
        _count("attempt", "which try at this run, from 1; the table shows the last one", required=True),
        _string("status", "what became of the run", required=True, values=STATUSES),
        _string("reason", "why the status is not ok, in one line; null where it is"),
        _string("started_at", "UTC, ISO 8601"),
        _string("finished_at", "UTC, ISO 8601"),
        _seconds("wall_s", "from the start of the ranks to the end of the last one"),
        _count("resumed_from_step", "step at which this attempt went on from a checkpoint; null: it began at 0"),
        _count("step_rows", "rows of this run in `steps`", required=True),
        _count("eval_rows", "rows of this run in `evals`", required=True),
        _count("comm_rows", "rows of this run in `comm`: a sweep over collectives has some, training none"),
        _count("schema_version", "version of this table's schema that wrote the row", required=True),
    ),
    "Model": (
        _string("model", "name of the size, for people"),
        _count("model_layers", "transformer blocks"),
        _count("model_heads", "attention heads"),
        _count("model_kv_heads", "key and value heads; fewer than heads: grouped-query attention"),
        _count("model_width", "width of the residual stream, d_model"),
        _count("model_ffn", "hidden width of the MLP"),
        _count("model_vocab", "vocabulary", "tokens"),
        _count("model_seq_len", "sequence length", "tokens"),
        _string("model_mlp", "`swiglu` (three matrices) or `gelu` (two)"),
        _bool("model_qk_norm", "queries and keys are normalised"),
        _bool("model_tied", "the head is the embedding"),
        _float("model_rope_theta", "base of the rotary embedding"),
        _float("model_norm_eps", "epsilon of the RMSNorms"),
        _count("params_total", "all parameters; a tied head counts once"),
        _count("params_non_embedding", "all but embedding and head (Kaplan's N, norms counted)"),
    ),
    "Data": (
        _string("data_source", "name of the source"),
        _string("data_path", "tokens: file of the training tokens"),
        _string("data_val_path", "tokens: file of the held-out tokens"),
        _float("data_val_fraction", "share held out for validation, never trained on"),
        _count("data_vocab", "vocabulary asked of the source (model_vocab: the model's)", "tokens"),
        _string("data_dtype", "tokens: `uint16`, `uint32` or `auto`"),
        _float("data_zipf_exponent", "zipf-markov: p(rank) ~ rank^-exponent"),
        _count("data_zipf_levels", "zipf-markov: scales of structure"),
        _count("data_chain_seed", "zipf-markov: which chain; `seed` draws from it"),
        _string("data_hash", "SHA-256 of the content (synthetic: of what generates it)"),
        _count("data_tokens", "training tokens there are; null: unlimited", "tokens"),
        _float("data_entropy_nats", "entropy rate of a source that knows it: the loss nothing can beat", "nats/token"),
        _count("tokens_per_step", "tokens of one optimizer step, over all ranks and replicas", "tokens"),
        _count("tokens_seen", "D: tokens trained on, repeats counted", "tokens"),
        _count("tokens_unique", "different training tokens among them", "tokens"),
    ),
    "Recipe": (
        _count("global_batch", "sequences per step, over all ranks and replicas", "sequences"),
        _count("steps", "optimizer steps asked for"),
        _float("lr", "peak learning rate"),
        _string("optimizer", "`adamw` (`deepspeed-...`: in its code), `sgd`, or `muon` of the blocks' matrices"),
        _float("beta1", "AdamW's first beta; sgd, muon: the momentum"),
        _float("beta2", "AdamW's second beta"),
        _float("eps", "AdamW's epsilon"),
        _float("weight_decay", "decoupled, on matrices only"),
        _string("lr_schedule", "`cosine`, `wsd` or `constant`"),
        _count("warmup_steps", "steps of linear learning-rate warm-up (measure_warmup_steps: those not timed)"),
        _float("decay_fraction", "share of the steps in which wsd decays"),
        _float("min_lr_ratio", "last learning rate over the peak"),
        _float("clip_norm", "bound of the gradient's global L2 norm; 0: no clipping"),
        _float("z_loss", "weight of mean(logsumexp(logits)^2)"),
        _string("precision", "`fp32`, or `bf16` compute over fp32 master weights and reductions"),
        _float("init_std", "standard deviation of the initial weights"),
        _count("seed", "of the weights and of the order of the data"),
        _string("start_weights", "file of the weights it started from; empty: drawn by init_std and seed"),
    ),
    "Layout": (
        _string("layout", "short name of the layout, as `fsdp2.tp2` or `diloco.M2.H30.fsdp2`"),
        _string("engine", "who does the training step: `torch`, `deepspeed`, `megatron`"),
        _count("dp_replicate", "data-parallel replicas (DDP; with dp_shard: HSDP)"),
        _count("dp_shard", "ranks that parameters are sharded over"),
        _count("zero_stage", "what dp_shard shards: 1 optimizer state, 2 gradients too, 3 parameters too"),
        _bool("reshard_after_forward", "torch: true: ZeRO-3 behaviour; false: ZeRO-2"),
        _count("hpz", "deepspeed: ranks that share a second copy of the parameters (ZeRO++); 1: none"),
        _string("offload_optimizer", "deepspeed: where optimizer state and update are: `none`, `cpu` or `nvme`"),
        _string("offload_parameters", "deepspeed: where parameters wait: `none`, `cpu` or `nvme`"),
        _count("tp", "tensor-parallel degree"),
        _bool("sp", "sequence-parallel norms; means nothing at tp = 1"),
        _bool("loss_parallel", "cross-entropy on logits sharded over the vocabulary"),
        _count("pp", "pipeline-parallel degree"),
        _string("pp_schedule", "pipeline schedule; means nothing at pp = 1"),
        _count("virtual_stages", "pipeline stages a rank"),
        _count("microbatches", "parts of the local batch: gradient accumulation, or what flows through the pipeline"),
        _count("cp", "context-parallel degree"),
        _string("cp_method", "`allgather` or `ulysses`; means nothing at cp = 1"),
        _count("ep", "expert-parallel degree"),
        _string("recompute", "activation recomputation: `none`, `selective` or `full`"),
        _bool("compile", "the model went through torch.compile"),
    ),
    "Outer loop": (
        _string("outer_algorithm", "`none`, or the algorithm that synchronises the replicas"),
        _count("outer_replicas", "M, the replicas"),
        _string("outer_placement", "`distributed`: each replica has ranks of its own; `folded`: they take turns"),
        _count("outer_sync_every", "H, inner steps between two synchronisations of a parameter"),
        _float("outer_lr", "outer learning rate"),
        _float("outer_momentum", "outer momentum"),
        _bool("outer_nesterov", "the outer momentum is Nesterov's"),
        _count("outer_fragment_layers", "streaming: layers a fragment"),
        _string("outer_fragment_order", "streaming: `strided` or `sequential`"),
        _count("outer_overlap_steps", "tau, inner steps between sending and applying"),
        _float("outer_mixing_alpha", "share of the replica's own parameters kept when applying"),
        _string("outer_compression", "of the pseudo-gradients: `none`, `bf16`, `int8`, `int4`, `fp4`, `topk`"),
        _count("outer_block_size", "elements that share a scale, or of which top-k keeps some"),
        _float("outer_density", "topk: share of a block's elements that is sent"),
        _float("outer_error_decay", "decay of the residual that compression kept back; 0: no error feedback"),
        _string("outer_exchange", "of packed messages: `allgather`, or `twoshot`: the sum is rounded once more"),
        _float("outer_bucket_mb", "fp32 size of one message before compression; 0: one parameter a message", "MB"),
        _bool("outer_offload", "folded: replicas wait their turn in host memory"),
        _count("outer_quorum", "replicas without which no outer step is taken; null: all must be there"),
        _seconds("outer_quorum_timeout_s", "how long an outer step waits for the replicas beyond the quorum"),
        _count("outer_steps", "outer steps taken"),
        _bytes("outer_bytes_per_rank", "bytes one rank sent for outer steps, over the run"),
        _seconds("outer_time_s", "time in outer steps, slowest rank, over the run"),
        _seconds("outer_exposed_s", "the part of it that no computation hid"),
        _float("replica_drift", "root mean square L2 distance of the replicas from their mean, last outer step"),
        _float("pseudograd_cosine", "mean cosine of two pseudo-gradients, weighted by norms, last outer step"),
        _count("quorum_missed", "outer steps in which a replica was missing"),
    ),
    "Measurement": (
        _count("measure_warmup_steps", "steps at the start that are kept and marked, and left out of every median"),
        _count("measure_eval_every", "steps between evaluations; 0: at the end only"),
        _count("measure_eval_sequences", "held-out sequences of one evaluation; 0: none", "sequences"),
        _count("measure_log_every", "steps between two readings of the loss"),
        _bool("measure_eval_start", "the start weights were evaluated, too: step 0 of `evals`"),
        _bool("measure_keep_weights", "the trained weights are in the run's folder, as weights.npz"),
        _count("measure_checkpoint_every", "steps between checkpoints; 0: none"),
        _bool("measure_probe_comm", "collectives and bytes are counted on one warm-up step"),
        _bool("measure_peak_matmul", "the device's peak was measured by matrix products"),
    ),
    "Loss": (
        _string("parity", "`not checked`: recorded from outside, nobody saw these losses follow one process's; "
                "null: an engine of ours, see `scalade verify`"),
        _float("train_loss_first", "training loss of step 0", "nats/token"),
        _float("train_loss_last", "training loss of the last step", "nats/token"),
        _float("loss", "mean training loss of the last tenth of the steps, at least one step", "nats/token"),
        _float("val_loss", "held-out loss at the end of the run", "nats/token"),
        _float("val_bits_per_byte", "val_loss per byte of text; null where a token has no known bytes", "bits/byte"),
    ),
    "Time": (
        _seconds("step_time_s", "median over the timed steps, each step that of its slowest rank"),
        _seconds("step_time_p05_s", "5th percentile over the timed steps"),
        _seconds("step_time_p95_s", "95th percentile over the timed steps"),
        _count("timed_steps", "steps in the median: all but the warm-up"),
        _seconds("first_step_s", "step 0: compilation, allocation and the first collectives"),
        _seconds("startup_s", "from the launch of the ranks to the start of step 0"),
        _seconds("data_time_s", "median time of a timed step spent waiting for data, slowest rank"),
        _seconds("comm_time_s", "time in collectives on the probed step, each waited for, slowest rank"),
        _seconds("compute_time_s", "median time of a timed step in forward and backward, mean over the ranks"),
        _seconds("optimizer_time_s", "median time of a timed step in clipping and update, mean over the ranks"),
        _seconds("exposed_comm_time_s", "median time of a timed step waited for collectives, mean over the ranks"),
        _seconds("exposed_comm_time_min_s", "the same of the rank that waited least: the rest is waiting for others"),
        _seconds("bubble_time_s", "median time of a timed step waited for other pipeline stages, mean over the ranks"),
        _seconds("optimizer_wait_s", "the part of these waits that is in optimizer_time_s, mean over the ranks"),
        _float("tokens_per_s", "tokens_per_step over step_time_s", "tokens/s"),
        _float("tokens_per_s_per_device", "tokens_per_s over world_size", "tokens/s"),
    ),
    "Goodput": (
        _count("restarts", "times the run's ranks were started again: after a kill, a preemption, a failure"),
        _seconds("elapsed_s", "from the first start of the run's ranks to the end of this attempt, waits counted"),
        _seconds("held_s", "the part of elapsed_s in which ranks were running: the sum over all starts"),
        _seconds("restart_time_s", "from launch to training, summed over all starts but the first"),
        _count("lost_steps", "steps computed again: done after the checkpoint that the next start went on from"),
        _seconds("useful_step_time_s", "sum of the step times of all steps, warm-up included, each step once"),
        _float("goodput", "useful_step_time_s / held_s (Google's ML Productivity Goodput: runtime goodput)"),
        _float("effective_training_time", "useful_step_time_s / elapsed_s (Llama 3, arXiv 2407.21783, 3.3.4)"),
    ),
    "FLOPs": (
        _float("flops_per_token_6n", "6 N, N all parameters (Chinchilla, arXiv 2203.15556)", "FLOP/token"),
        _float("flops_per_token_palm", "6 N less the look-up + 12 L w s (PaLM, arXiv 2204.02311)", "FLOP/token"),
        _float("flops_per_token_causal", "6 N of matrices + 6 L w s (Megatron, causal)", "FLOP/token"),
        _float("train_flops_6n", "C of the whole run: flops_per_token_6n x tokens_seen", "FLOP"),
        _float("train_flops_palm", "flops_per_token_palm x tokens_seen", "FLOP"),
        _float("train_flops_causal", "flops_per_token_causal x tokens_seen", "FLOP"),
        _float("peak_flops", "peak of one device at this precision; null: unknown device", "FLOP/s"),
        _string("peak_flops_source", "`datasheet` or `measured matmul`"),
        _float("mfu_6n", "model FLOPs utilisation: flops_per_token_6n x tokens_per_s_per_device / peak_flops"),
        _float("mfu_palm", "the same by the PaLM convention"),
        _float("mfu_causal", "the same by the causal convention"),
    ),
    "Memory and energy": (
        _bytes("peak_memory_bytes", "peak allocated on the device, fullest rank; null without an accelerator"),
        _bytes("peak_host_memory_bytes", "peak resident memory, fullest rank"),
        _float("energy_j", "energy of the timed steps, summed over what the ranks measured", "J"),
        _string("energy_source", "`nvml`, `rapl`; null where the hardware does not tell"),
    ),
    "Communication": (
        _bytes("comm_bytes_per_step", "message sizes (as nccl-tests counts) of one step, summed over the ranks"),
        _count("comm_calls_per_step", "collective calls in one step, summed over the ranks"),
        _string("comm_by_collective_json", 'all collectives: {"all_reduce": {"bytes": ..., "calls": ...}, ...}'),
        _string("comm_by_dim_json", 'all mesh dimensions: {"tp": {"bytes": ..., "calls": ...}, ...}'),
        *(_bytes(f"comm_bytes_{name}", f"the part of comm_bytes_per_step in {name}") for name in COLLECTIVES),
        *(_bytes(f"comm_bytes_dim_{name}", f"the part of comm_bytes_per_step over {name}") for name in MESH_DIMS),
        _string("comm_sweep_json", "what a sweep over collectives measured: collectives, sizes, dtype, iterations"),
    ),
    "Link": (
        _string("lab", "name of the lab whose shaped links the ranks talked over; null: the machine's own"),
        _float("link_rate_asked_bits_per_s", "rate that each node's link was shaped to; null: not shaped", "bits/s"),
        _seconds("link_rtt_asked_s", "round trip that was asked of the links; null: none was added"),
        _float("link_rate_measured_bits_per_s", "one TCP stream's goodput, slowest link, before the run", "bits/s"),
        _seconds("link_rtt_measured_s", "median TCP round trip of one byte, slowest link, before the run"),
    ),
    "Prediction": (
        _bytes("predicted_memory_bytes", "peak of one rank as predicted before the run"),
        _seconds("predicted_step_time_s", "step time as predicted before the run"),
    ),
    "Environment": (
        _string("launcher", "what started the ranks: `local`, `torchrun`, `mpirun`, `srun`"),
        _string("isolation", "`fresh` processes for each run, or a `pool` of ranks that ran other cases before"),
        _count("world_size", "ranks, all replicas counted"),
        _count("nodes", "different hosts among the ranks"),
        _string("ranks_json", "list of {rank, local_rank, host, pid, device}, one per rank"),
        _string("backend", "who moved the messages: `gloo`, `nccl`; in a sweep over collectives also `mpi`"),
        _string("device_type", "`cpu`, `cuda`"),
        _string("device_name", "as the driver names it"),
        _count("device_count", "devices of rank 0's host"),
        _string("driver_version", "of the accelerator"),
        _string("cpu_model", "of rank 0's host"),
        _count("cpu_count", "cores rank 0 may run on"),
        _count("threads_per_rank", "torch intra-op threads"),
        _bytes("host_memory_bytes", "of rank 0's host"),
        _string("os", "operating system and release"),
        _string("kernel", "kernel release"),
        _string("scalade_version", "of this package"),
        _string("git_commit", "of the checkout; null where there is none"),
        _bool("git_dirty", "the checkout had uncommitted changes"),
        _string("python_version", "of rank 0"),
        _string("torch_version", "of rank 0"),
        _string("cuda_version", "that torch was built for"),
        _string("nccl_version", "that torch uses"),
        _string("deepspeed_version", "null where the engine is another"),
        _string("megatron_version", "of megatron-core; null where the engine is another"),
        _string("mpi_version", "library version as MPI names it; null where MPI started nothing"),
    ),
}  # fmt: skip

_OF_RUN = (
    _string("run_id", "row of `runs` this belongs to", required=True),
    _count("attempt", "attempt of that run", required=True),
)

STEPS: dict[str, tuple[Column, ...]] = {
    "Step": (
        *_OF_RUN,
        _count("step", "from 0", required=True),
        _bool("warmup", "not timed: left out of the medians in `runs`"),
        _count("tokens_seen", "tokens trained on when the step ended", "tokens"),
        _float("loss", "mean over the global batch, before the update; NaN as measured", "nats/token", keeps_nan=True),
        _float("grad_norm", "global L2 norm before clipping; NaN as measured", keeps_nan=True),
        _float("lr", "learning rate of the step"),
        _seconds("step_time_s", "slowest rank"),
        _seconds("data_time_s", "waiting for data, slowest rank"),
        _seconds("compute_time_s", "forward and backward, with the waits in them, mean over the ranks"),
        _seconds("optimizer_time_s", "clipping and update, with the waits in them, mean over the ranks"),
        _seconds("comm_time_s", "waited for collectives, slower ranks and transfers alike, mean over the ranks"),
        _seconds("comm_time_min_s", "comm_time_s of the rank that waited least"),
        _seconds("bubble_time_s", "waited for other pipeline stages, transfers included, mean over the ranks"),
        _seconds("optimizer_wait_s", "the part of comm_time_s and bubble_time_s in optimizer_time_s"),
        _bytes("comm_bytes", "message sizes of the step's collectives, summed over the ranks"),
        _bool("outer_step", "an outer step ended with this step"),
        _seconds("outer_time_s", "time in the outer step, hidden or not, slowest rank"),
        _seconds("outer_exposed_s", "the part of it that no computation hid, slowest rank"),
        _bytes("outer_bytes", "bytes of the messages rank 0 handed to the link"),
        _count("replicas_present", "with a quorum: replicas whose pseudo-gradients are in the outer step"),
        _float("replica_drift", "root mean square L2 distance of the replicas from their mean"),
        _float("pseudograd_cosine", "mean cosine of two replicas' pseudo-gradients, weighted by their norms"),
    ),
}

EVALS: dict[str, tuple[Column, ...]] = {
    "Evaluation": (
        *_OF_RUN,
        _count("step", "optimizer steps taken before the evaluation", required=True),
        _count("tokens_seen", "tokens trained on before the evaluation", "tokens"),
        _string("kind", "weights evaluated: `model`; under DiLoCo also `outer` and `inner`", required=True),
        _float("val_loss", "mean over val_sequences; NaN as measured", "nats/token", keeps_nan=True),
        _count("val_sequences", "held-out sequences", "sequences"),
    ),
}

COMM: dict[str, tuple[Column, ...]] = {
    "Collective": (
        *_OF_RUN,
        _string("dim", "mesh dimension it ran along; `world`: all ranks", required=True),
        _string("collective", "what was called", required=True, values=COLLECTIVES),
        _bytes("message_bytes", "S, as nccl-tests counts: the whole gathered, scattered or exchanged array",
               required=True),
        _count("group_ranks", "n, ranks of one group"),
        _count("groups", "groups along the dimension, all at it at once"),
        _string("dtype", "of the elements"),
        _bool("correct", "before and after the timed calls, every rank had the result it must have"),
        _count("iterations", "timed calls; warm-up is left out"),
        _seconds("time_s", "median over the timed calls, each that of its slowest rank; null where not correct"),
        _seconds("time_min_s", "fastest timed call"),
        _seconds("time_p95_s", "95th percentile over the timed calls"),
        _seconds("first_s", "the first call: connections, allocation; not timed"),
        _float("algbw_bytes_per_s", "algorithm bandwidth, S over time_s", "bytes/s"),
        _float("busbw_bytes_per_s", "bus bandwidth: algbw times nccl-tests' factor of the collective", "bytes/s"),
    ),
}

TABLES: dict[str, dict[str, tuple[Column, ...]]] = {"runs": RUNS, "steps": STEPS, "evals": EVALS, "comm": COMM}
