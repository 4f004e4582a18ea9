"""Every method that answers tasks, behind one call: solve(tasks, budget) -> Attempts."""
