"""Programs that try to get out of the sandbox, or to take it down, and how each of them must end. Used by the tests and the
benchmark.

`expected`: the statuses that are right under seccomp, for the first input. What they must not do besides: leave a process, a
file or an open descriptor behind, disturb the next program, or answer later than the wall limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from arclab.programs.sandbox.execution import Status

S = Status


@dataclass(frozen=True, slots=True)
class Attack:
    name: str
    source: str
    expected: frozenset[Status]


def _attack(name: str, source: str, *expected: Status) -> Attack:
    return Attack(name, source, frozenset(expected))


def _solve(body: str, before: str = "") -> str:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"{before}\ndef solve(I):\n{lines}\n"


_FORGED_RECORD = "os.write(3, bytes([0, 1, 0, 1, 0, 5]))"  # one cell of colour 5
_PAGE = (
    "import ctypes, mmap\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\nheld = mmap.mmap(-1, 4096, "
    "mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\npage = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(held)))"
)

ATTACKS = (
    _attack("infinite loop", _solve("while True: pass"), S.timeout_cpu),
    _attack("infinite loop at import", "while True: pass", S.timeout_cpu),
    _attack("sleep", _solve("time.sleep(100)", "import time"), S.timeout_wall),
    _attack("long call in C", _solve("return pow(7, 10**9)"), S.timeout_cpu, S.oom),
    _attack(
        "loop that excepts everything",
        _solve("while True:\n    try:\n        while True: pass\n    except BaseException: pass"),
        S.timeout_cpu,
    ),
    _attack("10 GB at once", _solve("return bytearray(10 * 2**30)"), S.oom),
    _attack("10 GB array", _solve("return np.ones((36000, 36000))", "import numpy as np"), S.oom, S.exception),
    _attack("memory bit by bit", _solve("kept = []\nwhile True: kept.append(bytearray(2**20))"), S.oom, S.timeout_cpu),
    _attack("fork bomb", _solve("while True: os.fork()", "import os"), S.exception),
    _attack(
        "thread bomb",
        _solve("while True: threading.Thread(target=time.sleep, args=(9,)).start()", "import threading, time"),
        S.exception,
    ),
    _attack(
        "orphan in a session of its own",
        _solve(
            "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        import time; "
            "time.sleep(60)\n    os._exit(0)\nreturn I",
            "import os",
        ),
        S.exception,
    ),
    _attack("start a program", _solve("os.execv('/bin/sh', ['sh'])", "import os"), S.exception),
    _attack("1 GB print", _solve("for _ in range(1000): print('x' * 10**6)\nreturn I"), S.ok, S.timeout_cpu),
    _attack(
        "1 GB to the answer's pipe",
        _solve("while True: os.write(3, b'\\0' * 65536)", "import os"),
        S.output_limit,
        S.timeout_cpu,
    ),
    # a constant program could say the same
    _attack("forged answer, then exit", _solve(f"{_FORGED_RECORD}\nos._exit(0)", "import os"), S.ok),
    _attack("forged rubbish", _solve("os.write(3, b'\\xff' * 40)\nos._exit(0)", "import os"), S.exited, S.bad_output),
    _attack("os._exit", _solve("os._exit(0)", "import os"), S.exited),
    _attack("sys.exit", _solve("sys.exit(0)", "import sys"), S.exited),
    _attack("kill the parent", _solve("os.kill(os.getppid(), 9)", "import os"), S.exception),
    _attack("kill everybody", _solve("os.kill(-1, 9)", "import os"), S.exception),
    # two CPU seconds: on a busy machine the other limit comes first
    _attack(
        "ignore all signals, then loop",
        _solve("for n in (1, 2, 3, 14, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass", "import signal"),
        S.timeout_cpu,
        S.timeout_wall,
    ),
    _attack("change directory", _solve("os.chdir('/tmp')", "import os"), S.exception),
    _attack("remove a file", _solve("os.unlink('/etc/hostname')", "import os"), S.exception),
    _attack("write a file", _solve("open('/tmp/arclab_attack', 'w').write('x')"), S.exception),
    _attack("read a file", _solve("open('/etc/passwd').read()"), S.exception),
    _attack("socket", _solve("_socket.socket(2, 1)", "import _socket"), S.exception),
    _attack(
        "system calls through ctypes",
        _solve(
            "libc = ctypes.CDLL(None)\nassert libc.socket(2, 1, 0) == libc.fork() == libc.open(b'/etc/passwd', "
            "0) == -1\nreturn I",
            "import ctypes",
        ),
        S.ok,
    ),
    _attack(
        "poison a page of memory",
        _solve(
            "assert [libc.madvise(page, 4096, advice) for advice in (100, 101, 12, 21)] == [-1] * 4 and "
            "libc.madvise(page, 4096, 4) == 0\nreturn I",
            _PAGE,
        ),
        S.ok,
    ),
    _attack(
        "new machine code",
        _solve(
            "assert libc.mprotect(page, 4096, 7) == -1 and libc.mmap(0, 4096, 7, 34, -1, 0) == "
            "ctypes.c_void_p(-1).value\nassert libc.mprotect(page, 4096, 3) == 0\nreturn I",
            _PAGE,
        ),
        S.ok,
    ),
    _attack(
        "capabilities",
        _solve(
            "assert libc.prctl(24, 0, 0, 0, 0) == libc.capset(0, 0) == libc.setuid(0) == libc.chroot(b'/') == -1\nreturn I",
            _PAGE,
        ),
        S.ok,
    ),
    _attack(
        "random bytes of the system",
        _solve("assert ctypes.CDLL(None).getrandom(ctypes.create_string_buffer(8), 8, 0) == -1\nreturn I", "import ctypes"),
        S.ok,
    ),
    _attack(
        "answer that changes",
        _solve(
            "return L([L([N(3)])])",
            "class L(list):\n    asked = 0\n    def __iter__(self): L.asked += 1; return iter([[99] * "
            "L.asked])\n    __getitem__ = lambda self, at: [99]\n    __len__ = lambda self: 7\nclass N(int):\n "
            "   __int__ = __index__ = lambda self: 300\n    __eq__ = __lt__ = __gt__ = __le__ = __ge__ = "
            "lambda self, other: True",
        ),
        S.ok,
    ),
    _attack("environment", _solve("assert not os.environ and not open('/proc/self/environ').read()", "import os"), S.exception),
    _attack(
        "arguments",
        _solve("assert sys.argv == ['<program>'] and len(open('/proc/self/cmdline').read())", "import sys"),
        S.exception,
    ),
    _attack("memory of the parent", _solve("open(f'/proc/{os.getppid()}/mem', 'rb').read(1)", "import os"), S.exception),
    _attack(
        "frames above it",
        _solve(
            "f = sys._getframe()\nwhile f:\n    assert not any('expected' in str(k) for k in f.f_locals)\n    "
            "f = f.f_back\nreturn I",
            "import sys",
        ),
        S.ok,
    ),
    _attack(
        "recursion of a million",
        _solve(
            "def f(n): return 0 if n == 0 else 1 + f(n - 1)\nreturn [[f(10**6) % 10]]",
            "import sys; sys.setrecursionlimit(10**7)",
        ),
        S.ok,
        S.oom,
        S.timeout_cpu,
        S.killed,
    ),
    _attack("endless recursion", _solve("return solve(I)"), S.exception),
    _attack("generator", _solve("yield from I"), S.bad_output),
    _attack("circular list", _solve("a = []\na.append(a)\nreturn a"), S.bad_output),
    _attack("array", _solve("return np.array(I)[::-1]", "import numpy as np"), S.ok),
    _attack("numpy integers", _solve("return [[np.int64(c) for c in row] for row in I]", "import numpy as np"), S.ok),
    _attack("whole floats", _solve("return [[float(c) for c in row] for row in I]"), S.ok),
    _attack("broken floats", _solve("return [[c + 0.5 for c in row] for row in I]"), S.bad_output),
    _attack("not a number", _solve("return [[float('nan')]]"), S.bad_output),
    _attack("bools", _solve("return [[c > 0 for c in row] for row in I]"), S.bad_output),
    _attack("ragged", _solve("return [[1], [1, 2]]"), S.bad_output),
    _attack("no rows", _solve("return []"), S.bad_output),
    _attack("no columns", _solve("return [[], []]"), S.bad_output),
    _attack("too large", _solve("return [[0] * 31] * 31"), S.bad_output),
    _attack("too large array", _solve("return np.zeros((3000, 3000))", "import numpy as np"), S.bad_output),
    _attack("no colour", _solve("return [[10]]"), S.bad_output),
    _attack("nothing", _solve("pass"), S.bad_output),
    _attack(
        "class that lies",
        _solve(
            "return L([[1]])",
            "class L(list):\n    def __len__(self): return 10**9\n    def __iter__(self): return iter(int, 1)",
        ),
        S.ok,
    ),
    _attack(
        "exception whose text raises",
        _solve(
            "raise E()",
            "class E(Exception):\n    def __str__(self): raise SystemExit\n    @property\n    def args(self): raise "
            "KeyboardInterrupt",
        ),
        S.exception,
        S.exited,
    ),
    _attack("null byte in the source", "def solve(I):\n    return I\0", S.syntax_error),
    _attack("deep nesting in the source", "x = " + "(" * 5000 + ")" * 5000, S.syntax_error, S.oom),
)
# These poison what the next program or the next input would use.
POISONS = (
    _solve("I[0][0] = 7\nI.clear()\nreturn [[1]]"),
    _solve("return I", "import numpy, json\nnumpy.array = json.dumps = json.loads = None"),
    _solve("return I", "import builtins\nbuiltins.list = builtins.len = builtins.isinstance = None"),
    _solve("return I", "import random\nrandom.seed(1); random.random = None"),
)
