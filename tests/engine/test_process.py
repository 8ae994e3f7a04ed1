"""Descriptors over a socket: as many as a device has pages, in order, and none left open when the other end goes."""

import os
import socket

import pytest

from gyges.engine.process import receive_descriptors, send_descriptors


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        yield ours, theirs


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_more_descriptors_than_one_message_takes_come_in_order(pair):
    ours, theirs = pair
    files = [os.memfd_create(str(n)) for n in range(3)]
    send_descriptors(ours.fileno(), tuple(files[n % 3] for n in range(300)))
    received = receive_descriptors(theirs.fileno(), 300)
    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in received]
    assert names == [f"/memfd:{n % 3} (deleted)" for n in range(300)]
    for fd in (*files, *received):
        os.close(fd)


def test_an_end_in_the_middle_is_said_and_leaves_nothing_open(pair):
    ours, theirs = pair
    before = open_files()
    file = os.memfd_create("one")
    send_descriptors(ours.fileno(), (file,) * 250)
    ours.close()
    with pytest.raises(EOFError, match="300 descriptors expected, 250 came"):
        receive_descriptors(theirs.fileno(), 300)
    os.close(file)
    assert open_files() == before - 1
