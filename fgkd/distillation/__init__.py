"""Distillation: teachers and capture, where targets come from, the student's step, verification."""
