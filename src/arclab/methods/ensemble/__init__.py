"""Ensembles: candidates of finished results of any method, merged and scored like any other answer."""
