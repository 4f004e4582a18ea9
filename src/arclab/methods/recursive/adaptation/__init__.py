"""Training a recursive model on the demonstrations of the tasks that it is about to answer."""
