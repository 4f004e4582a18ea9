"""Tests of the stages in which a model learns to propose how it is trained."""
