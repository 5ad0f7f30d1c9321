"""From decoded texts to evidence: tasks, calibration, evaluation, statistics, reports."""
