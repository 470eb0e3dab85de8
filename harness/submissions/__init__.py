"""Submissions: archives of records that others can check and publish."""
