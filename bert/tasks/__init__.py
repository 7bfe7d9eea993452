"""What a network is used for: one file a task, whose name is the task's."""
