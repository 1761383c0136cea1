"""Graph rewrites, one a file; `optimize.py` states their order."""
