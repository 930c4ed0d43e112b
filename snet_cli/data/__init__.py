"""What is on disk and what it means: trajectories, input signals, files. Plain NumPy; never imports torch."""
