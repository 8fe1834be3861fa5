"""The HTML report: one self-contained page of a run's scores."""
