"""The comparison of the 2018 study, from events to page: training, accuracy, costs, scaling."""
