"""Optimizers, schedules, the training loop, checkpoints and run folders."""
