"""Tables of others' measured runs: read by a map, predicted, and held against what was measured.

Read in this order: `field` (how a cell becomes a number), `table_map` (which column is what), `models` (shapes of
models that a table only names), `layout_of` and `runs` (rows as configurations with what was measured), `split`
(calibrate on some, judge others), `metrics` (errors, order, regret, coverage), `judge` (the whole), `report` (its
text).
"""
