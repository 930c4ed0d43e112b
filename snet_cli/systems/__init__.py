"""Ground truths that `snet simulate` integrates: equations, parameters, initial states and inputs."""
