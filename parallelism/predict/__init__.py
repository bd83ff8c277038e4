"""What a run will need before it is started: time by part, memory, bytes, energy, each with an interval.

Read in this order: `configs` (what is asked), `machine` and `stack` (what runs it), `layer` and `matmul` (a block's
computation), `collective`, `waits` and `messages` (what is sent), `schedule` (the pipeline), `step` and `memory` (the
whole), `fit` and `calibration` (what measured runs change), `tables` (the model held against them). No module here
imports torch. Every quantity is computed for all configurations of a search at once: a field is a scalar, where all
have the same, or an array (n,).
"""

from __future__ import annotations

from .configs import Configs
from .machine import Machine, load_machine
from .stack import STACKS, Stack
from .step import Step, predict_step
from .tuning import Tuning

__all__ = ["STACKS", "Configs", "Machine", "Stack", "Step", "Tuning", "load_machine", "predict_step"]
