"""Measuring what is left of a concept, and what is left of everything else."""
