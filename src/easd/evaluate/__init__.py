"""Decodes and grades a grid of systems, tasks and seeds."""
