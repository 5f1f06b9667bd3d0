"""Hosts: hostfiles, allocations, preflight, Ray, and the supervision of processes."""
