"""Peers of swiglu-kernel: Liger, torch eager and torch.compile. See peer.py for the protocol.

`packed` weights are one [K, 2N] tensor, as ours; `separate` ones two [K, N] tensors, which spares Liger the copies of its halves: what it is fastest with.
"""
import importlib.metadata

from peer import Peers, serve


def package(name):
    """Imports a peer and tells its version."""
    __import__(name.replace("-", "_"))
    return importlib.metadata.version(name)


def packed(torch, gate):
    def layer(x, w):
        g, u = (x @ w).chunk(2, dim=-1)
        return gate(g, u)

    return layer


def separate(torch, gate):
    return lambda x, w_gate, w_up: gate(x @ w_gate, x @ w_up)


class Step:
    """z, dx and dW (`step`), or z with gradients off (`forward`)."""

    def __init__(self, torch, request):
        name, shape = request["impl"], request["shape"]
        m, k, n = shape["M"], shape["K"], shape["N"]
        dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[request["dtype"]]
        self.torch = torch
        self.with_gradients = request["op"] == "step"
        self.layer, weights = self.function(name)

        def randn(rows, columns, scale):
            values = torch.randn(rows, columns, device="cuda", dtype=dtype).mul_(scale)
            return values.requires_grad_(self.with_gradients)

        self.inputs = [randn(m, k, 1.0)] + [randn(k, 2 * n // weights, k**-0.5) for _ in range(weights)]
        self.dz = torch.randn(m, n, device="cuda", dtype=dtype) if self.with_gradients else None

    def function(self, name):
        """The layer, and how many weight tensors it takes."""
        torch = self.torch
        silu = lambda g, u: torch.nn.functional.silu(g) * u
        if name == "torch eager":
            return packed(torch, silu), 1
        if name.startswith("torch.compile"):
            torch.compiler.reset()  # compiled for this one shape, as a training loop would
            apart = name.endswith("separate")
            layer = (separate if apart else packed)(torch, silu)
            return torch.compile(layer, dynamic=False), 2 if apart else 1
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        if name == "liger-kernel":
            return separate(torch, LigerSiLUMulFunction.apply), 2
        if name == "liger-kernel packed":
            return packed(torch, LigerSiLUMulFunction.apply), 1
        raise ValueError(f"unknown impl {name!r}")

    def clear(self):
        for tensor in self.inputs:
            tensor.grad = None

    def __call__(self):
        self.clear()
        if self.with_gradients:
            self.layer(*self.inputs).backward(self.dz)
        else:
            with self.torch.no_grad():
                self.layer(*self.inputs)


IMPLS = {
    "liger-kernel": lambda: package("liger-kernel"),
    "liger-kernel packed": lambda: package("liger-kernel"),
    "torch eager": lambda: package("torch"),
    "torch.compile": lambda: package("torch"),
    "torch.compile separate": lambda: package("torch"),
}

if __name__ == "__main__":
    serve(Peers(IMPLS, Step))
