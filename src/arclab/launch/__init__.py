"""Starting, following and reporting many runs. Never imports torch."""
