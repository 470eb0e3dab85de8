"""The page that a comparison is read on: template, figures and the event to look at."""
