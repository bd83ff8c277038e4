"""Which layout to run, and which run to buy: every possible layout of a model on a machine, predicted and ranked; and
a fitted law joined with predicted speed, so that a budget in hours, joules or dollars has a best model.

Read in this order: `question` (what is asked), `rules` and `space` (which layouts there are), `search` (memory, time,
the best and the Pareto front), `report` and `study` (what is shown, and what measures it), `budget` (the run to buy).
Nothing here imports torch.
"""

from __future__ import annotations

from .question import Question
from .search import Plan, search

__all__ = ["Plan", "Question", "search"]
