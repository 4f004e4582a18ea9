"""Questions and answers as text: datasets of questions with worked replies, and checking answers."""
