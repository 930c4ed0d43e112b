"""Learnable right-hand sides f(t, x, u; θ): one file a model, one line in the registry."""
