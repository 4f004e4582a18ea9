"""The registry of metric names and the logger that accepts no other."""
