"""Untrusted programs as answers: prompts, the sandbox, outcomes, feedback, rewards, environments and votes."""
