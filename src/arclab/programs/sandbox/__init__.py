"""Programs that nobody has read, each in a process of its own with limits and a filter of system calls."""
