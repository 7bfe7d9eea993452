"""The training loop, its optimiser, and what resuming needs; knows no task."""
