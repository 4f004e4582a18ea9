"""The documents, and what makes their generated parts (tables.py, records.py) and the site (site_hooks.py)."""
