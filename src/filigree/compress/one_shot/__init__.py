"""Connections taken out of trained layers at one go, what stays made up for them by second derivatives."""
