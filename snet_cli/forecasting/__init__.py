"""Forecasts of a trained model on a data set: windows, initial states, rollout."""
