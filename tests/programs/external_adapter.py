"""What a nanoGPT-like trainer adds to report into Scalade's table: its names for the table's, and one call a step."""

import json
import platform
import socket

import torch
import torch.distributed as dist

import scalade


def open_run(results, config, model, ranks):
    """A recorder for this run; on ranks other than 0 it does nothing. config: nanoGPT's own names."""
    hosts = [None] * ranks
    dist.all_gather_object(hosts, socket.gethostname())
    return scalade.record(
        results, name=config["wandb_run_name"], engine="nanogpt", model=config["model"],
        model_layers=config["n_layer"], model_heads=config["n_head"], model_width=config["n_embd"],
        model_ffn=4 * config["n_embd"], model_mlp="gelu", model_vocab=config["vocab_size"],
        model_seq_len=config["block_size"], model_tied=True, params_total=sum(p.numel() for p in model.parameters()),
        data_source=config["dataset"], seed=config["seed"], steps=config["max_iters"],
        global_batch=config["batch_size"] * config["gradient_accumulation_steps"] * ranks,
        microbatches=config["gradient_accumulation_steps"], dp_replicate=ranks,
        optimizer="adamw", lr=config["learning_rate"], beta1=config["beta1"], beta2=config["beta2"],
        weight_decay=config["weight_decay"], clip_norm=config["grad_clip"], warmup_steps=config["warmup_iters"],
        lr_schedule="cosine", min_lr_ratio=config["min_lr"] / config["learning_rate"],
        precision={"float32": "fp32", "bfloat16": "bf16"}[config["dtype"]], compile=config["compile"],
        launcher="torchrun", nodes=len(set(hosts)), backend=dist.get_backend(), device_type=config["device"],
        cpu_model=platform.processor() or platform.machine(), threads_per_rank=torch.get_num_threads(),
        ranks_json=json.dumps([{"rank": rank, "host": host} for rank, host in enumerate(hosts)]),
    )  # fmt: skip


def tell(run, loss, seconds, lr, grad_norm, config, ranks):
    """One step: the mean loss over the ranks, the time of the slowest."""
    mean, slowest = torch.tensor([loss / ranks], dtype=torch.float64), torch.tensor([seconds], dtype=torch.float64)
    dist.all_reduce(mean)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    tokens = config["batch_size"] * config["gradient_accumulation_steps"] * config["block_size"] * ranks
    run.step(loss=mean, step_time_s=slowest, tokens=tokens, lr=lr, grad_norm=grad_norm)
