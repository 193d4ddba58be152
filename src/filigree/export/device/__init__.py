"""Processors of small devices: what a program needs on one, its project files, and a run on an emulated one."""
