"""`bisect`: where a runtime leaves the reference, and the smallest model that shows it."""
