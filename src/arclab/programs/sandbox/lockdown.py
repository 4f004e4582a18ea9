"""What the sandbox asks of the kernel: the filter of system calls, no capabilities, fixed addresses, and a fork for somebody
else.

    lock, why_not = locked_down()        # tried out on a child; None and the reason where the system cannot
    fix_addresses()                      # of the programs that this process starts
    drop_capabilities()
    fork = Fork(address)                 # fork() is 0 in the child, whose parent is the parent of the process that called it

Landlock is not used: it restricts opening files and connecting sockets, and the filter's list of allowed calls has none that
does either. Linux only; `Fork` knows x86_64 and aarch64.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import signal

# All that a computing process needs. Everything else fails with EPERM: files, sockets, processes, threads, signals, memory of
# others, and what differs from one process to the next: its number and the system's random bytes.
_SYSCALLS = (
    "read",
    "write",
    "close",
    "lseek",
    "fstat",
    "munmap",
    "mremap",
    "brk",
    "futex",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sigaltstack",
    "clock_gettime",
    "clock_getres",
    "clock_nanosleep",
    "nanosleep",
    "gettimeofday",
    "time",
    "times",
    "getrusage",
    "sched_yield",
    "sched_getaffinity",
    "exit",
    "exit_group",
    "restart_syscall",
    "poll",
    "ppoll",
    "select",
    "pselect6",
)
# Advice that only concerns the caller's own pages. Root may poison pages of the whole machine with others (MADV_HWPOISON).
_ADVICE = (
    mmap.MADV_NORMAL,
    mmap.MADV_RANDOM,
    mmap.MADV_SEQUENTIAL,
    mmap.MADV_WILLNEED,
    mmap.MADV_DONTNEED,
    mmap.MADV_FREE,
    mmap.MADV_HUGEPAGE,
    mmap.MADV_NOHUGEPAGE,
)

# Of sys/prctl.h, linux/personality.h, linux/sched.h and linux/capability.h.
SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36
_SET_SECCOMP, _MODE_FILTER, _SET_NO_NEW_PRIVS, _CAPBSET_DROP, _CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL = 22, 2, 38, 24, 47, 4
_ADDR_NO_RANDOMIZE, _ASK = 0x0040000, 0xFFFFFFFF
_CLONE_PARENT, _CLONE_PARENT_SETTID = 0x00008000, 0x00100000
_CAPABILITY_VERSION_3, _MAX_CAPABILITIES = 0x20080522, 64
_CLONE_NUMBER = {"x86_64": 56, "aarch64": 220}
_INSTRUCTION_BYTES = 8  # struct sock_filter

_libc = ctypes.PyDLL(None)  # PyDLL: cheaper than CDLL, whose release of the interpreter's lock helps no single thread
prctl = _libc.prctl
prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
_personality = _libc.personality
_personality.argtypes = (ctypes.c_ulong,)


class Lock:
    """A prepared filter; load() applies it to the calling process for good.

    libseccomp makes the program once; to load it is then one system call, where SyscallFilter.load() makes it anew in every
    child.
    """

    def __init__(self, program: bytes) -> None:
        self._buffer = ctypes.create_string_buffer(program, len(program))
        self._header = _FilterProgram(len(program) // _INSTRUCTION_BYTES, ctypes.addressof(self._buffer))
        self._at = ctypes.addressof(self._header)

    def load(self) -> None:
        """OSError: the kernel refuses; it does unless forbid_new_privileges() was called."""
        if prctl(_SET_SECCOMP, _MODE_FILTER, self._at, 0, 0) != 0:
            raise OSError("the kernel refused the filter")


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def forbid_new_privileges() -> None:
    """This process and all that it starts gain no privileges by starting programs."""
    if prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError("the kernel refused no_new_privs")


def locked_down() -> tuple[Lock | None, str]:
    """The filter for children if this system enforces it, tried out on a child; else None and the reason."""
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"libseccomp cannot be loaded ({error})"
    wanted = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    for name in _SYSCALLS:
        try:
            wanted.add_rule(pyseccomp.ALLOW, name)
        except (OSError, ValueError, RuntimeError):
            continue  # not a system call of this architecture
    for advice in _ADVICE:
        wanted.add_rule(pyseccomp.ALLOW, "madvise", pyseccomp.Arg(2, pyseccomp.EQ, advice))
    for name in ("mmap", "mprotect"):  # no memory that holds new machine code
        wanted.add_rule(pyseccomp.ALLOW, name, pyseccomp.Arg(2, pyseccomp.MASKED_EQ, mmap.PROT_EXEC, 0))
    with open(os.memfd_create("filter"), "w+b") as file:
        wanted.export_bpf(file)
        file.seek(0)
        lock = Lock(file.read())
    child = os.fork()
    if child == 0:
        os._exit(_probe(lock))
    held = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return (lock, "") if held else (None, "the kernel did not apply a seccomp filter")


def _probe(lock: Lock) -> int:
    try:
        forbid_new_privileges()
        lock.load()
        os.open("/", os.O_RDONLY)
    except PermissionError:
        return 0
    except OSError:
        return 1
    return 1


def fix_addresses() -> None:
    """Programs that this process starts have no random addresses, so that sets of objects have the same order in every worker.

    Where the system forbids that (as Docker does unless told otherwise) they have; see has_fixed_addresses().
    """
    _personality(_personality(_ASK) | _ADDR_NO_RANDOMIZE)


def has_fixed_addresses() -> bool:
    """Of this process."""
    return _personality(_ASK) & _ADDR_NO_RANDOMIZE != 0


class _CapabilityHeader(ctypes.Structure):
    """struct __user_cap_header_struct of linux/capability.h."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def drop_capabilities() -> None:
    """Nothing that root may and others may not, for this process and all that it forks. OSError: the kernel refuses."""
    for number in range(_MAX_CAPABILITIES):
        prctl(_CAPBSET_DROP, number, 0, 0, 0)  # fails for those that do not exist, and for users who have none to drop
    prctl(_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header, none = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if _libc.capset(ctypes.byref(header), none) != 0:
        raise OSError("the kernel did not drop capabilities")


class Fork:
    """fork() of a process whose children belong to its parent: 0 in the child, its number in the caller, -1 if there is none.

    number_at: address at which the kernel writes the child's number, for the parent, who shares that memory. os.fork() is not
    used because its children belong to the caller, who would have to wait for them; and because it runs hooks for threads,
    which are a third of its cost and of which there are none here. OSError: a machine whose number of the system call is not
    known.
    """

    def __init__(self, number_at: int) -> None:
        if platform.machine() not in _CLONE_NUMBER:
            raise OSError(f"the sandbox knows {' and '.join(_CLONE_NUMBER)}, not {platform.machine()}")
        self._call = _libc.syscall
        self._call.argtypes, self._call.restype = (ctypes.c_long,) * 6, ctypes.c_long
        # Ready to be passed: numbers would be packed for each call, and give their memory back in another order than they took
        # it, so that every second child would find another memory.
        numbers = (
            _CLONE_NUMBER[platform.machine()], _CLONE_PARENT | _CLONE_PARENT_SETTID | signal.SIGCHLD, 0, number_at, 0, 0,
        )  # fmt: skip
        self._arguments = tuple(map(ctypes.c_long, numbers))

    def __call__(self) -> int:
        return self._call(*self._arguments)
