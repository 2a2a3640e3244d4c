"""The Python side of `xtask bench --peers`: one JSON object a line on stdin, one answer a line on stdout.

    {"cmd": "hello"}                          -> {"ok": true, "versions": {...}, "impls": {name: {"version": ...} | {"error": ...}}}
    {"cmd": "setup", "impl": name, "op": "step", "shape": {"B": 8192, "D": 768}, "dtype": "bf16", "limit_s": 120, ...}  -> {"ok": true}
    {"cmd": "time", "impl": name, "reps": 10, "warmup": 1}  -> {"ok": true, "ms": [...]}
    {"cmd": "costs", "impl": name}            -> {"ok": true, "peak_bytes": n, "host_us": t}
    {"cmd": "drop"}                           -> {"ok": true}     frees what every setup made
    {"cmd": "quit"}, or the end of stdin      ends the process

Several peers can be set up at once, so that they run in turn on one problem. Anything that goes wrong is answered as
{"ok": false, "error": "..."}; the peer it happened to is dropped, the process goes on.

Timing is the same as on the Rust side: CUDA events around each call, 256 MiB of zeros written before it to flush the L2, no host sync between
the calls of a round (so that Python's own time hides behind the GPU's where it can). peak_bytes is the most that one call holds on the device
above its inputs, outputs included.
"""
import contextlib
import gc
import json
import os
import signal
import sys
import time

# What a peer's tuning finds is kept on disk beside its kernels, so that a second run need not tune again.
os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")

FLUSH_BYTES = 256 << 20


@contextlib.contextmanager
def limited(seconds):
    """Raises TimeoutError in what runs longer than this; None is no limit."""

    def give_up(_signal, _frame):
        raise TimeoutError(f"compiling and tuning took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    # Again every few seconds, should a library swallow the first one.
    signal.setitimer(signal.ITIMER_REAL, seconds or 0, 5 if seconds else 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Timer:
    """Times a callable that queues work on torch's current stream."""

    def __init__(self, torch):
        self.torch = torch
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def measure(self, call, reps, warmup):
        torch = self.torch
        for _ in range(warmup):
            call()
        events = []
        for _ in range(reps):
            self.flush.zero_()
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events]

    def peak_bytes(self, call):
        torch = self.torch
        call.clear()
        gc.collect()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def host_us(self, call):
        torch = self.torch
        times = []
        for _ in range(10):
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e6)
        torch.cuda.synchronize()
        return sorted(times)[len(times) // 2]


class Peers:
    """`impls` maps a name to a function () -> version that raises when the peer is not usable here; `make(torch, request)` returns a
    callable with a method clear() that drops the outputs of its last call."""

    def __init__(self, impls, make):
        self.impls = impls
        self.make = make
        self.torch = None
        self.timer = None
        self.calls = {}

    def hello(self, _request):
        impls = {}
        for name, probe in self.impls.items():
            try:
                impls[name] = {"version": probe()}
            except Exception as error:  # a peer that does not import is an answer, not a crash
                impls[name] = {"error": f"{type(error).__name__}: {error}"}
        versions = {"python": sys.version.split()[0]}
        try:
            import torch

            versions["torch"] = torch.__version__
            versions["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
            import triton

            versions["triton"] = triton.__version__
        except Exception as error:
            versions["missing"] = f"{type(error).__name__}: {error}"
        return {"versions": versions, "impls": impls}

    def setup(self, request):
        import torch

        if self.timer is None:
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.manual_seed(0)
            self.timer = Timer(torch)
            self.torch = torch
        with limited(request.get("limit_s")):
            call = self.make(torch, request)
            for _ in range(2):  # compiles and tunes
                call()
            torch.cuda.synchronize()
        call.clear()
        self.calls[request["impl"]] = call
        return {}

    def call(self, request):
        call = self.calls.get(request["impl"])
        if call is None:
            raise RuntimeError(f"{request['cmd']!r} before 'setup' of {request['impl']!r}")
        return call

    def time(self, request):
        call = self.call(request)
        ms = self.timer.measure(call, request["reps"], request.get("warmup", 1))
        call.clear()  # the others need the memory
        return {"ms": ms}

    def costs(self, request):
        call = self.call(request)
        answer = {"peak_bytes": self.timer.peak_bytes(call), "host_us": self.timer.host_us(call)}
        call.clear()
        return answer

    def drop(self, request):
        if request.get("impl"):
            self.calls.pop(request["impl"], None)
        else:
            self.calls.clear()
        if self.torch is not None:
            gc.collect()
            self.torch.cuda.synchronize()
            self.torch.cuda.empty_cache()
        return {}


def serve(peers):
    # Libraries print; the protocol's channel is kept apart and their output goes to stderr.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    commands = {"hello": peers.hello, "setup": peers.setup, "time": peers.time, "costs": peers.costs, "drop": peers.drop}
    for line in sys.stdin:
        request = {}
        try:
            request = json.loads(line)
            if request.get("cmd") == "quit":
                break
            handler = commands.get(request.get("cmd"))
            if handler is None:
                raise ValueError(f"unknown cmd {request.get('cmd')!r}: expected one of {sorted(commands)} or 'quit'")
            answer = {"ok": True, **handler(request)}
        except Exception as error:
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}".strip().splitlines()[0]}
            del error
            try:
                if isinstance(request, dict) and request.get("impl"):
                    peers.drop(request)
            except Exception as second:
                answer["error"] += f"; freeing memory failed too: {second}"
        channel.write(json.dumps(answer) + "\n")
        channel.flush()
