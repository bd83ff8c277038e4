"""Predictions of a study's cases: the machine profile in use, the model at work on the cases, what is shown of it."""
