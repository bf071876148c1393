"""A template whose workers misbehave: a program that speaks the protocol and keeps none of it.

Started as `python hostile_template.py HOW CONTROL_FD`; its workers do what `HOW` says:

    junk        answer LOAD with a READY that cannot be read, and stay
    boast       answer LOAD with a READY of endless words
    deaf        answer LOAD well, and stay when their stream is closed
    mute        answer nothing, and are told of only after they were to be killed
    leaver      answer LOAD well, close their stream, and stay
    flood       announce a frame of 32 MiB, and stay
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys

from agent.wire import frames

GOOD = b'{"runtime":"r","runtime_version":"1","placement":{"got":"p"},"variant":"v"}'
LONG = GOOD.replace(b'"r"', b'"' + b"r" * 100_000 + b'"')
SAID = {"junk": b"{{{", "boast": LONG, "deaf": GOOD, "leaver": GOOD, "flood": GOOD}


PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def misbehave(how: str, stream: socket.socket) -> None:
    end_with_parent()
    stream.recv(65536)
    if how in SAID:
        stream.sendall(frames.encode_frame(frames.READY, 0, 0, b"", SAID[how]))
    if how == "flood":
        whole = frames.encode_frame(frames.RESULT, 0, 1, b"", bytes(32 << 20))
        stream.sendall(whole[: frames.HEADER.size])
    if how == "leaver":
        stream.close()
    signal.pause()


def main() -> None:
    end_with_parent()
    how, control = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    control.send(b'{"event":"ready","runtime":"r","version":"1"}')
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    numbers: dict[int, bytes] = {}
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                told = b'{"event":"exited","worker":%s,"status":%d}' % (numbers.pop(pid), code)
                control.send(told)
        if control not in ready:
            continue
        packet, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
        if not packet:
            return
        if b"kill" in packet:
            os.kill(int(packet.partition(b":")[2].strip(b"}")), signal.SIGKILL)
            continue
        number = packet.partition(b":")[2].strip(b"}")
        pid = os.fork()
        if pid == 0:
            control.close()
            misbehave(how, socket.socket(fileno=descriptors[0]))
        numbers[pid] = number
        started = b'{"event":"started","worker":%s,"pid":%d}' % (number, pid)
        stream = socket.socket(fileno=descriptors[0])
        if how == "mute":
            # The other side has given up when its end is closed; only now it learns the pid.
            stream.recv(65536, socket.MSG_PEEK)
            while stream.recv(1, socket.MSG_PEEK):
                select.select([], [], [], 0.01)
        stream.close()
        control.send(started)


main()
