"""The command arclab: what its words start, completion, the scoreboard, and files for a new encoder or method."""
