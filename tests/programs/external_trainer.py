"""A trainer that is not ours, after nanoGPT's train.py: globals of its own, gradient accumulation, DDP, AdamW.

Started as a rank by worlds.run_world: JOBS.json holds what overrides the globals, as nanoGPT's configurator does.
"""

import contextlib
import json
import math
import sys
import time

import torch
import torch.distributed as dist
from external_adapter import open_run, tell
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

config = {
    "wandb_run_name": "nanogpt", "model": "nano", "dataset": "synthetic", "n_layer": 1, "n_head": 2, "n_embd": 16,
    "vocab_size": 32, "block_size": 16, "batch_size": 2, "gradient_accumulation_steps": 2, "max_iters": 14,
    "learning_rate": 1e-2, "min_lr": 1e-3, "warmup_iters": 2, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1,
    "grad_clip": 1.0, "seed": 1337, "dtype": "float32", "compile": False, "device": "cpu", "results": "recorded",
    "break_at": None,
}  # fmt: skip


class Block(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(width, 4 * width), torch.nn.GELU(), torch.nn.Linear(4 * width, width)
        )

    def forward(self, x):  # (batch, seq, width)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.wte, self.wpe = (torch.nn.Embedding(c[n], c["n_embd"]) for n in ("vocab_size", "block_size"))
        self.blocks = torch.nn.Sequential(*(Block(c["n_embd"], c["n_head"]) for _ in range(c["n_layer"])))
        self.norm = torch.nn.LayerNorm(c["n_embd"])

    def forward(self, idx, targets):  # (batch, seq) both
        x = self.blocks(self.wte(idx) + self.wpe(torch.arange(idx.shape[1])))
        return F.cross_entropy((self.norm(x) @ self.wte.weight.T).flatten(0, 1), targets.flatten())


def get_batch(generator):
    """Sequences that count upwards modulo the vocabulary: something to learn."""
    start = torch.randint(config["vocab_size"], (config["batch_size"], 1), generator=generator)
    tokens = (start + torch.arange(config["block_size"] + 1)) % config["vocab_size"]
    return tokens[:, :-1], tokens[:, 1:]


def get_lr(step):
    if step < config["warmup_iters"]:
        return config["learning_rate"] * (step + 1) / (config["warmup_iters"] + 1)
    share = (step - config["warmup_iters"]) / (config["max_iters"] - config["warmup_iters"])
    return config["min_lr"] + 0.5 * (1 + math.cos(math.pi * share)) * (config["learning_rate"] - config["min_lr"])


dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
with open(sys.argv[1]) as file:
    config |= json.load(file)
torch.manual_seed(config["seed"])
torch.set_num_threads(1)
model = DDP(GPT(config))
optimizer = torch.optim.AdamW(
    model.parameters(),
    lr=config["learning_rate"],
    betas=(config["beta1"], config["beta2"]),
    weight_decay=config["weight_decay"],
)
generator = torch.Generator().manual_seed(config["seed"] + rank)
run = open_run(config["results"], config, model, ranks)
try:
    with run:
        for step in range(config["max_iters"]):
            began, lossf = time.perf_counter(), 0.0
            for group in optimizer.param_groups:
                group["lr"] = get_lr(step)
            for micro in range(config["gradient_accumulation_steps"]):
                last = micro == config["gradient_accumulation_steps"] - 1
                with contextlib.nullcontext() if last else model.no_sync():
                    loss = model(*get_batch(generator)) / config["gradient_accumulation_steps"]
                    loss.backward()
                lossf += loss.item()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config["grad_clip"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step == config["break_at"]:
                raise RuntimeError("the trainer broke\nin two lines")
            tell(run, lossf, time.perf_counter() - began, get_lr(step), norm, config, ranks)
except RuntimeError:
    assert config["break_at"] is not None
if rank == 0:
    with open(sys.argv[2], "w") as file:
        json.dump({"run_id": run.run_id, "loss": lossf}, file)
dist.destroy_process_group()
