"""Studies as jobs of a cluster's scheduler: submitted, watched, cancelled."""
