"""Training without integration: the relaxed problem (R, L, J) and the methods that minimise it. Touches no files."""
