"""The program in the sandbox, which drops its privileges and then runs the given code.

It runs with `python -I` and the standard library only, and reads one JSON object from standard
input. Once every part has run, it copies a random number from one pipe to its report pipe; else it
reports the error. It drops privileges in this order: resource limits, the user (if root), files
(Landlock), system calls (seccomp).
"""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import platform
import struct
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache, wraps
from types import ModuleType
from typing import Any

# The functions below keep these built-in functions, whatever the code replaces.
globals()["__builtins__"] = dict(vars(builtins))

_PART = "<part"  # Prefix of the file names of code that is run.
_COMPARISONS = [
    f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge", "sub", "rsub", "abs")
]

# linux/prctl.h, linux/capability.h
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 8, 22, 38
_CAPABILITY_VERSION = 0x20080522
_CAP_DAC_READ_SEARCH = 2
_SIGKILL = 9
_NOBODY = 65534

# linux/landlock.h: system calls (the same on every architecture) and rights over files.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_PLEASE, _PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 5
_MAKE_FILE, _TRUNCATE = 1 << 8, 1 << 14
_NUM_RIGHTS = (13, 14, 15, 15, 16)  # Known to versions 1, 2, ...; none came after the fifth.
_READ = _READ_FILE | _READ_DIR
_READ_AND_WRITE = _READ | _WRITE_FILE | _REMOVE_FILE | _MAKE_FILE | _TRUNCATE
_FILE_ONLY = _READ_FILE | _WRITE_FILE | _TRUNCATE

# linux/seccomp.h, linux/filter.h, linux/audit.h
_SECCOMP_MODE_FILTER = 2
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050001, 0x7FFF0000  # Refuse: errno EPERM.
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _SECOND_ARGUMENT_AT = 0, 4, 24
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_CALLS = 0x40000000

# System calls that Landlock leaves open, by architecture; they fail with EPERM.
_NEW_CALLS = {
    "pidfd_send_signal": 424,
    "io_uring_setup": 425,
    "pidfd_open": 434,
    "clone3": 435,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "fchmodat2": 452,
    "setxattrat": 463,
    "removexattrat": 466,
    "file_setattr": 469,
}
# fmt: off
FORBIDDEN_CALLS = {
    "x86_64": {
        **_NEW_CALLS,
        # Processes and threads.
        "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "execveat": 322,
        # Other processes.
        "kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
        "prlimit64": 302, "setpriority": 141, "sched_setscheduler": 144, "sched_setparam": 142,
        "sched_setattr": 314, "sched_setaffinity": 203, "ioprio_set": 251, "migrate_pages": 256,
        "move_pages": 279,
        # The network, and sockets of services on this machine.
        "socket": 41,
        # Files that are only named, not opened.
        "truncate": 76, "open_by_handle_at": 304,
        "chmod": 90, "fchmod": 91, "fchmodat": 268, "chown": 92, "fchown": 93, "lchown": 94,
        "fchownat": 260, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280,
        "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197,
        "lremovexattr": 198, "fremovexattr": 199,
        # What outlives the process.
        "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240, "add_key": 248,
        "request_key": 249, "keyctl": 250,
        # The kernel.
        "unshare": 272, "setns": 308, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161,
    },
    "aarch64": {
        **_NEW_CALLS,
        "clone": 220, "execve": 221, "execveat": 281,
        "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
        "prlimit64": 261, "setpriority": 140, "sched_setscheduler": 119, "sched_setparam": 118,
        "sched_setattr": 274, "sched_setaffinity": 122, "ioprio_set": 30, "migrate_pages": 238,
        "move_pages": 239,
        "socket": 198,
        "truncate": 45, "open_by_handle_at": 265,
        "fchmod": 52, "fchmodat": 53, "fchown": 55, "fchownat": 54, "utimensat": 88,
        "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15,
        "fremovexattr": 16,
        "shmget": 194, "semget": 190, "msgget": 186, "mq_open": 180, "add_key": 217,
        "request_key": 218, "keyctl": 219,
        "unshare": 97, "setns": 268, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282,
        "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51,
    },
}
# fmt: on
# Second arguments that make the kernel signal another process: fcntl F_SETOWN and F_SETOWN_EX,
# ioctl FIOSETOWN and SIOCSPGRP.
FORBIDDEN_ARGUMENTS = {
    "x86_64": {72: (8, 15), 16: (0x8901, 0x8902)},
    "aarch64": {25: (8, 15), 29: (0x8901, 0x8902)},
}


@cache
def _libc() -> ctypes.CDLL:
    """Loads the C library, not at import, which must also work on other systems."""
    return ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Confines the process, runs the parts, and reports."""
    request = json.load(sys.stdin)
    report, nonce = request["report"], request["nonce"]
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
        confine(request)
    except Exception as error:
        _say(report, {"failure": f"the sandbox could not be set up ({error})"})
        return
    try:
        _run(request["parts"], request["judged"])
    except BaseException as error:  # SystemExit is a failure, too.
        _say(report, {"error": f"{type(error).__name__}: {error}"[:500]})
    else:
        os.write(report, os.read(nonce, 64))
    os._exit(0)  # Without exit handlers that the code registered.


def _say(report: int, what: dict[str, str]) -> None:
    os.write(report, json.dumps(what).encode())


def _run(parts: list[str], judged: str | None) -> None:
    """Runs the parts in one module other than `__main__`.

    The last part, the tests, calls the function named `judged` through `_checked`.
    """
    module = ModuleType("solution")
    sys.modules["solution"] = module
    names = module.__dict__
    for number, part in enumerate(parts):
        if judged and number == len(parts) - 1 and callable(names.get(judged)):
            # Only for the tests, as the solution may call the function a million times.
            names = {**names, judged: _checked(names[judged])}
        exec(compile(part, f"{_PART} {number}>", "exec", dont_inherit=True), names)


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the function to refuse results that define their own comparisons."""
    kinds = list, tuple, set, frozenset, dict

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        seen, left = set(), [result]
        while left:
            value = left.pop()
            if _compares_itself(type(value)):
                raise TypeError("the function returned an object with comparisons of its own")
            if isinstance(value, kinds) and id(value) not in seen:
                seen.add(id(value))
                left.extend([*value, *value.values()] if isinstance(value, dict) else value)
        return result

    return call


def _compares_itself(kind: type) -> bool:
    if kind.__module__ == "unittest.mock":
        return True
    functions = (getattr(kind, name, None) for name in _COMPARISONS)
    codes = (getattr(function, "__code__", None) for function in functions)
    return any(code is not None and code.co_filename.startswith(_PART) for code in codes)


def confine(request: dict[str, Any]) -> None:
    """Drops every privilege that running a function does not need.

    Raises:
        OSError: The kernel refused a step.
    """
    _limit(request)
    rules = _file_rules(request["folder"])  # While every path can be reached.
    if os.geteuid() == 0:
        _become_nobody(request["folder"])
    _check(_libc().prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0))
    if os.getppid() != request["parent"]:
        raise ProcessLookupError("the parent is gone")
    _check(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(_libc().syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)
    _confine_calls()


def _limit(request: dict[str, Any]) -> None:
    import resource

    limits = {
        resource.RLIMIT_AS: (request["memory"], request["memory"]),
        # The soft limit sends a signal that can be ignored; the hard one kills a second later.
        resource.RLIMIT_CPU: (request["cpu_time"], request["cpu_time"] + 1),
        resource.RLIMIT_FSIZE: (request["file_size"], request["file_size"]),
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_CORE: (0, 0),
    }
    for what, (soft, most) in limits.items():
        _, allowed = resource.getrlimit(what)
        if allowed != resource.RLIM_INFINITY:
            soft, most = min(soft, allowed), min(most, allowed)
        resource.setrlimit(what, (soft, most))


def _become_nobody(folder: str) -> None:
    """Switches from root to a user who owns only the folder but may read Python's files."""
    os.chown(folder, _NOBODY, _NOBODY)
    _check(_libc().prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    held = ctypes.create_string_buffer(struct.calcsize("=6I"))
    _check(_libc().capget(header, held))
    kept = struct.unpack("=6I", held.raw)[1] & 1 << _CAP_DAC_READ_SEARCH
    _check(_libc().capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)))


def landlock_version() -> int:
    """Returns the kernel's version of Landlock; 0 or less where it has none."""
    return _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_PLEASE)


def _file_rules(folder: str) -> int:
    """Returns rules to read only Python and system libraries, and write only in the folder."""
    version = landlock_version()
    handled = (1 << _NUM_RIGHTS[min(version, len(_NUM_RIGHTS)) - 1]) - 1
    attributes = struct.pack("=Q", handled)
    ruleset = _check(
        _libc().syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    )
    readable = {
        sys.prefix,
        sys.exec_prefix,
        sys.base_prefix,
        sys.base_exec_prefix,
        *sysconfig.get_paths().values(),
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"),
        *("/etc/ld.so.cache", "/etc/localtime", "/dev/urandom"),
    }
    rights = {**dict.fromkeys(readable, _READ), folder: _READ_AND_WRITE}
    rights["/dev/null"] = _READ_FILE | _WRITE_FILE
    for path, wanted in rights.items():
        if os.path.exists(path):
            _allow(ruleset, path, wanted & handled)
    return ruleset


def _allow(ruleset: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if not os.path.isdir(path):
        rights &= _FILE_ONLY
    rule = struct.pack("=Qi", rights, place)
    _check(_libc().syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))
    os.close(place)


def _confine_calls() -> None:
    machine = platform.machine()
    program = b"".join(_filter(machine))
    instructions = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]

    wanted = Program(len(program) // 8, ctypes.addressof(instructions))
    _check(_libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(wanted), 0, 0))


def _filter(machine: str) -> Iterator[bytes]:
    """Yields a classic BPF program over the system call's number and second argument."""
    yield _instruction(_LOAD, _ARCHITECTURE_AT)
    yield _instruction(_EQUAL, _ARCHITECTURES[machine], then=1)
    yield _instruction(_RETURN, _KILL)
    yield _instruction(_LOAD, _NUMBER_AT)
    if machine == "x86_64":
        yield _instruction(_AT_LEAST, _X32_CALLS, otherwise=1)
        yield _instruction(_RETURN, _REFUSE)
    for number in FORBIDDEN_CALLS[machine].values():
        yield _instruction(_EQUAL, number, otherwise=1)
        yield _instruction(_RETURN, _REFUSE)
    for number, values in FORBIDDEN_ARGUMENTS[machine].items():
        yield _instruction(_EQUAL, number, otherwise=2 * len(values) + 2)
        yield _instruction(_LOAD, _SECOND_ARGUMENT_AT)
        for value in values:
            yield _instruction(_EQUAL, value, otherwise=1)
            yield _instruction(_RETURN, _REFUSE)
        yield _instruction(_RETURN, _ALLOW)
    yield _instruction(_RETURN, _ALLOW)


def _instruction(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """Encodes one instruction; `then` and `otherwise` are how many to skip."""
    return struct.pack("=HBBI", code, then, otherwise, value)


def _check(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


if __name__ == "__main__":
    main()
