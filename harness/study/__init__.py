"""The 2018 study on this machine: events, trainings, tests, costs and a page."""
