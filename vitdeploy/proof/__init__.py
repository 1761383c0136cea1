"""Are these the same numbers? What everything else trusts."""
