"""Simulated recordings: ground truths integrated, sampled at chosen times, and disturbed."""
