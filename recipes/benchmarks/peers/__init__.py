"""What a user would pick in place of a live stream: one file for each kind, in one form, for `comparison.py`."""
