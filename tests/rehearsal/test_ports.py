"""Ports for clusters that share a host."""

from __future__ import annotations

import socket

from r1hpc.rehearsal.ports import BLOCK, free_port_block


def test_two_clusters_that_start_at_once_get_different_ports() -> None:
    with free_port_block(20) as one, free_port_block(20) as other:
        assert abs(one - other) >= BLOCK


def test_block_with_a_listener_is_passed_over() -> None:
    with free_port_block(20) as base, socket.socket() as listener:
        listener.bind(("127.0.0.1", base + 19))
        listener.listen()
        taken = base
    with free_port_block(20) as base, socket.socket():
        free_again = base
    assert free_again == taken
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken + 19))
        listener.listen()
        with free_port_block(20) as base:
            assert base != taken


def test_claim_ends_with_its_context() -> None:
    with free_port_block(3) as first:
        pass
    with free_port_block(3) as second:
        assert second == first
