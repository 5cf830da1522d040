"""The pipeline as units of work: configuration, plan, workers, resume, and the end that writes mix and report."""
