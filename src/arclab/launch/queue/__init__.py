"""Many runs from one file (jobs.txt): reading, planning, submitting, and how far they are. Nothing here imports torch."""
