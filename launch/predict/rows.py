"""What rows of `run` carry of a prediction: computed once for a study, before its first run, in the supervisor; cases
that differ in learning rate or seed alone are one evaluation.

Without a profile of this machine nothing is predicted, and nothing is imported for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...parallelism.predict.memory import UNCALIBRATED
from ..study.study import Study
from .profile import own_profile


def predicted_columns(study: object) -> Mapping[str, Mapping[str, Any]]:
    """case_id -> columns `predicted_...`, of all cases of a study file; nothing of anything else, or without a
    profile.

    Raises
    ------
    ValueError: the profile is damaged
    """
    if not isinstance(study, Study) or not own_profile().is_file():
        return {}
    from .cases import predict_cases
    from .profile import find_machine

    alike = [(case, places) for case, places in study.alike if case.refusal() is None]
    predictions = predict_cases([case for case, _ in alike], find_machine(None))
    return {
        study.all_cases[place].case_id: prediction.columns
        for prediction, (_, places) in zip(predictions, alike, strict=True)
        for place in places
    }


def memory_columns(predicted_bytes: int | None) -> dict[str, int | None]:
    """The peak that a run was planned with, and its interval. None: nothing was predicted."""
    low, high = (None if predicted_bytes is None else round(predicted_bytes * end) for end in UNCALIBRATED)
    return {
        "predicted_memory_bytes": predicted_bytes,
        "predicted_memory_low_bytes": low,
        "predicted_memory_high_bytes": high,
    }
