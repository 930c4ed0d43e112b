"""What the commands do, as plain functions of paths and option objects."""
