"""Scores, requirements, pictures and tables of forecasts."""
