"""Known physics that ground truths and learnable models share."""
