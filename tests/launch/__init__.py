"""Tests of arclab.launch."""
