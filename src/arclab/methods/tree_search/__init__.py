"""Write programs step by step, execute every step, and grow a tree of them where it pays."""
