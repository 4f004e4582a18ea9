"""One folder a method. Methods import what is below, never each other, and nothing below imports a method."""
