"""Training of small detectors: data, losses, assignment, schedule, trainer."""
